"""The kinds of training jobs by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tandem.cluster.jobs.kinds.kind import JobKind
from tandem.cluster.jobs.kinds.preference import Preference
from tandem.cluster.jobs.kinds.reinforcement import Reinforcement
from tandem.cluster.jobs.kinds.supervised import Supervised

KINDS: Mapping[str, JobKind[Any, Any]] = {kind.name: kind for kind in (Reinforcement(), Supervised(), Preference())}


def read_options(kind: str, stored: Mapping[str, Any]) -> BaseModel:
    """Return the options that a job's row has."""
    options: BaseModel = KINDS[kind].options.model_validate_json(json.dumps(stored))  # strict about JSON's types
    return options
