"""Runs the jobs of saved training configurations."""
