"""The kinds of training jobs by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tandem.cluster.jobs.kinds.kind import JobKind
from tandem.cluster.jobs.kinds.reinforcement import Reinforcement

KINDS: Mapping[str, JobKind[Any, Any]] = {kind.name: kind for kind in (Reinforcement(),)}


def read_options(kind: str, stored: Mapping[str, Any]) -> BaseModel:
    """Return the options that a job's row has."""
    options: BaseModel = KINDS[kind].options.model_validate(stored)
    return options
