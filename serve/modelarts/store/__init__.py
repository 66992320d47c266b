"""Saved training configurations and user jobs in the database."""
