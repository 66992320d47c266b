"""Training jobs: accepted, queued, claimed, ended; and what else trains a model meanwhile."""
