"""The durable state of the Tinker API: sessions, runs and their calls, checkpoints and samplers."""
