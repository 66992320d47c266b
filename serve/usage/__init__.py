"""The ledger: what jobs, models and keys have used, and where the time of a job went."""
