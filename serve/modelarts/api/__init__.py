"""Routes of saved training configurations and their jobs."""
