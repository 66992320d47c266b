"""The settings of a run. Everything that affects its numbers is in its fingerprint, so results never mix."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from loss_comparison.configurations import Configuration

FORMAT = 1
"""Of the result files. Increased when the code changes the meaning of a run's numbers."""
Kind = Literal["training", "replay", "trl"]


class Settings(BaseModel):
    """Settings that all runs of a comparison share. They were chosen once, for a curve that rises visibly but not at
    once, and are tuned for none of the losses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str = "builtin:tiny"
    """builtin:tiny, a directory or a Hugging Face id."""
    environment: str = "loss_comparison.largest:Largest"
    """package.module:Class or path/to/file.py:Class."""
    environment_options: dict[str, Any] = {}
    num_versions: int = Field(8, ge=1)
    """Training jobs of a run, each of which makes a policy version."""
    groups_per_version: int = Field(8, ge=1)
    group_size: int = Field(8, ge=2)
    learning_rate: float = Field(2e-3, gt=0)
    packed_sequence_length: int = Field(128, ge=1)
    """Tokens of a packed row; each row is one gradient step, as in the service with one learner."""
    max_tokens: int = Field(16, ge=1)
    """Of one answer."""
    num_eval_tasks: int = Field(64, ge=1)
    """Tasks, one rollout each, on which every evaluated version is measured; the same for all runs of a seed."""
    eval_every: int = Field(2, ge=1)
    """Versions from one evaluation to the next; the first and the last are always evaluated."""
    lora_r: int = Field(8, ge=1)
    lora_alpha: float = Field(16, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    num_threads: int = Field(1, ge=1)
    """Torch's, of each run."""
    rollout_timeout_s: float = Field(3600, gt=0)

    @field_validator("environment_options")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        json.dumps(value)  # it is part of the fingerprint
        return value

    def evaluated(self, version: int) -> bool:
        return version % self.eval_every == 0 or version == self.num_versions


TASKS: dict[str, dict[str, Any]] = {
    "largest": {},
    "yes-no-maybe": {"environment": "tandem.rl.environments.toy:YesNoMaybe"},
    # As many gradient steps per version as the peer takes.
    "yes-no-maybe-short-rows": {"environment": "tandem.rl.environments.toy:YesNoMaybe", "packed_sequence_length": 80},
    "calculator": {
        "environment": "tandem.rl.environments.toy:Calculator",
        "max_tokens": 40,
        "packed_sequence_length": 512,
    },
}
"""Named tasks, by the settings that differ from the defaults. The calculator is an agent of several turns with a
tool."""


class RunRequest(BaseModel):
    """One run: a configuration, a seed and a lag under common settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    name: str
    overrides: dict[str, Any]
    seed: int = Field(ge=0)
    lag: int = Field(ge=0)
    """Versions from the one that samples to the one that is trained; the base model samples for the first `lag` jobs.
    Of a replay: the lag of its stored batches."""
    settings: Settings
    replay_digest: str | None = None
    """Of a replay: the digest of its stored batches and their policies."""

    @classmethod
    def of(
        cls, kind: Kind, configuration: Configuration, seed: int, lag: int, settings: Settings, **more: Any
    ) -> RunRequest:
        return cls(
            kind=kind, name=configuration.name, overrides=configuration.overrides, seed=seed, lag=lag,
            settings=settings, **more,
        )  # fmt: skip

    @property
    def fingerprint(self) -> str:
        text = json.dumps({"format": FORMAT, **self.model_dump(mode="json")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        return f"{self.kind}.{self.name}.lag{self.lag}.seed{self.seed}"
