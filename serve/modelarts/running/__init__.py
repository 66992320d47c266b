"""Runs jobs: claims them, starts their programs or training jobs, and records their ends."""
