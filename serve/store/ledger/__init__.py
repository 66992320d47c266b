"""The ledger: what jobs and engines used, by phase, key, model and version."""
