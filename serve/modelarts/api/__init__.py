"""HTTP routes of saved configurations and their jobs."""
