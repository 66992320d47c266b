"""Stored request bodies, read in bounded memory."""
