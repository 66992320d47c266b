"""Turns rows into answers about runs and checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tandem.serve.tinker.store.catalog import ListedCheckpoint
from tandem.serve.tinker.wire.rest import Checkpoint, CheckpointType

TYPES: dict[str, CheckpointType] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def checkpoint_view(found: ListedCheckpoint) -> Checkpoint:
    return Checkpoint(
        checkpoint_id=found.id,
        checkpoint_type=TYPES[found.kind],
        time=found.created_at,
        tinker_path=found.path,
        size_bytes=found.num_bytes,
        public=found.public,
        user_metadata=text_values(found.user_metadata),
        expires_at=found.expires_at,
        base_model=found.base_model,
    )


def text_values(metadata: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Return metadata as the SDK's types have it: other values than text as JSON."""
    if metadata is None:
        return None
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
