"""The options of direct preference optimization: meaning, default, bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from tandem.rl.config import Count, LearningRate

DEFAULT_BETA = 0.1
DEFAULT_BATCH_SIZE = 2
DEFAULT_LEARNING_RATE = 5e-6


class PreferenceConfig(BaseModel):
    """The options of one job of preference pairs. `None` (or leaving it out) means unset: the default applies."""

    model_config = ConfigDict(title="PreferenceConfig", extra="forbid", strict=True, frozen=True)

    beta: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    """0.1. How strongly the policy is held to the reference."""
    batch_size: Count | None = None
    """2. Pairs of one gradient step, in the order of the data."""
    learning_rate: LearningRate | None = None
    """5e-6."""

    @property
    def pairs_per_step(self) -> int:
        return self.batch_size or DEFAULT_BATCH_SIZE
