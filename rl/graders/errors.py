"""Errors of graders."""

from __future__ import annotations

from typing import Literal

from tandem.rl.errors import RLError

Kind = Literal[
    "formula_parse_error",
    "invalid_variable_error",
    "model_grader_parse_error",
    "model_grader_refusal_error",
    "model_grader_server_error",
    "python_grader_runtime_error",
    "python_grader_server_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "other_error",
]
"""The flags of `fine_tuning.alpha.graders.run`."""


class GraderError(RLError, ValueError):
    """A grader can't grade this answer, or none at all.

    Attributes:
        kind: the flag of OpenAI's answer that is set for it.
        reason: what was wrong, and what to do.
    """

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason

    def __str__(self) -> str:
        return self.reason
