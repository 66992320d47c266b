"""Logprob computation, shared between learners and engines."""
