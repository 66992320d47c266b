"""Saved configurations and jobs in the database."""
