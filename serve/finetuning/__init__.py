"""OpenAI's fine-tuning API, for the unmodified openai SDK: files, jobs, events, checkpoints and graders.

A job of this API becomes training jobs of the service, on a model of its own: `running/` submits and follows them, each
under an idempotency key, so that a job survives restarts. `store/` has the tables, `data/` the rows of files.
"""
