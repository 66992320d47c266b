"""Settings of a job: their fields, their rules, and what they can name."""
