"""Training jobs: claim, preparation, training, commit."""
