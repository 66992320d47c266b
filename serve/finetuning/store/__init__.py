"""The durable state: uploaded files, jobs, and their events."""
