"""The service layer of training jobs: accept, pin references, sweep."""
