"""The routes of the Tinker API, under /api/v1."""
