"""The JSON of the Tinker API."""
