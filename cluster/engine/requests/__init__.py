"""Requests to an engine: their checks, vLLM's routes, and what is added to the answers."""
