"""Runs, checkpoints, sessions and tokenizers, as the SDK's RestClient and people look them up."""
