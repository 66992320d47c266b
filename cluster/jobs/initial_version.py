"""A base model's version 0 from one start of the service to the next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.errors import ArtifactError

INITIAL_VERSIONS = "initial_versions"


def initial_version(base: ResolvedBaseModel, artifacts: Artifacts, make: Callable[[str], str]) -> str:
    """Return the digest of version 0. `make` makes it durable, unless an earlier start has.

    Making it takes a process with torch, for whose imports the start would have to wait.
    """
    key = _note(base)
    if key is not None and (digest := _noted(artifacts, key)):
        return digest
    digest = make(base.name)
    if key is not None:
        artifacts.write_blob(key, digest.encode())
    return digest


def _note(base: ResolvedBaseModel) -> str | None:
    """Return the key of the note for all that version 0 depends on; None for a model whose files aren't at hand."""
    file = Path(base.path) / "config.json"
    if not file.is_file():
        return None
    settings = [base.name, base.config.lora.model_dump(mode="json"), json.loads(file.read_bytes())]
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{INITIAL_VERSIONS}/{fingerprint}"


def _noted(artifacts: Artifacts, key: str) -> str | None:
    try:
        digest = artifacts.read_blob(key).decode()
        artifacts.pull_adapter(digest)
    except ArtifactError:
        return None
    return digest
