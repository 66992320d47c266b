"""Logprobs computed by learners and engines together."""
