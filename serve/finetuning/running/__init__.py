"""Runs jobs: claims them, checks their files, submits training jobs, and follows these."""
