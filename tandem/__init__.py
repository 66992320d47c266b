"""Tandem: reinforcement learning of language-model agents on your own Ray cluster."""

__version__ = "0.1.0"
