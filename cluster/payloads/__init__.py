"""Stored request bodies, read in memory that does not grow with them."""
