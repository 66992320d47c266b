"""Where a turn lies in its token sequence. Loads no torch, because readers of traces need it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainedTurn:
    """The place of a turn that has trained tokens."""

    begin: int
    """Index of its first token in the sequence."""
    num_tokens: int
    index: int
    """Of the message or choice in its history, or of the exchange among those of its protocol."""
    policy_version: int | None
    """The step of the version that sampled it, if known."""
