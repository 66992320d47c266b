"""Hyperparameters: the meaning of "auto", and how they become the options of training jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO = "auto"
AUTO_EPOCHS = {"supervised": 3, "dpo": 1, "reinforcement": 1}
MAX_AUTO_BATCH = {"supervised": 32, "dpo": 16, "reinforcement": 16}
AUTO_BETA = 0.1
GROUP_SIZE = 8
"""Answers for each row of a reinforcement job, times `compute_multiplier`."""
MAX_GROUP_SIZE = 256
AUTO_EVAL_INTERVAL = 5
AUTO_EVAL_SAMPLES = 1


def resolved(method: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    """Return a method with numbers for its hyperparameters that are "auto", which depend on the rows of its file."""
    kind = method["type"]
    given = method[kind]["hyperparameters"]
    auto: dict[str, Any] = {
        "n_epochs": AUTO_EPOCHS[kind],
        "batch_size": auto_batch_size(kind, num_rows),
        "learning_rate_multiplier": 1.0,
        "beta": AUTO_BETA,
        "compute_multiplier": 1.0,
        "eval_interval": AUTO_EVAL_INTERVAL,
        "eval_samples": AUTO_EVAL_SAMPLES,
    }
    numbers = {name: auto[name] if value == AUTO else value for name, value in given.items()}
    return {**method, kind: {**method[kind], "hyperparameters": numbers}}


def auto_batch_size(kind: str, num_rows: int) -> int:
    """Return a fiftieth of the rows, at least 1 (reinforcement: 4) and at most `MAX_AUTO_BATCH`."""
    least = min(4, num_rows) if kind == "reinforcement" else 1
    return max(least, min(MAX_AUTO_BATCH[kind], num_rows // 50))


def group_size(compute_multiplier: float) -> int:
    """Return the number of answers to each row: at least 2, because they are compared with each other."""
    return max(2, min(MAX_GROUP_SIZE, round(GROUP_SIZE * compute_multiplier)))
