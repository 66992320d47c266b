"""The HTTP routes, their schemas and their errors."""
