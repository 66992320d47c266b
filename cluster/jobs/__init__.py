"""Training jobs: claimed, prepared, trained, committed."""
