"""The service layer of training jobs: accept them, store their payloads, remove leftovers. Knows no HTTP."""
