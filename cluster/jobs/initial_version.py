"""Reuse a base model's version 0 from an earlier start of the service."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.errors import ArtifactError

INITIAL_VERSIONS = "initial_versions"
CHECKS = 2  # raised when base models are checked for more, so that those of earlier starts are checked again


def initial_version(base: ResolvedBaseModel, artifacts: Artifacts, make: Callable[[str], str]) -> str:
    """Return the digest of version 0. Call `make` to store it, unless an earlier start has.

    `make` needs a process with torch, whose imports would delay the start.
    """
    key = _note(base)
    if key is not None and (digest := _noted(artifacts, key)):
        return digest
    digest = make(base.name)
    if key is not None:
        artifacts.write_blob(key, digest.encode())
    return digest


def _note(base: ResolvedBaseModel) -> str | None:
    """Return the key under which the digest is stored; None if the model's files aren't in a local directory."""
    file = Path(base.path) / "config.json"
    if not file.is_file():
        return None
    lora, own = base.config.lora.model_dump(mode="json"), json.loads(file.read_bytes())
    settings = [CHECKS, base.name, lora, base.config.max_model_len, own]
    if base.config.lora_limits.target_modules:
        settings.append(base.config.lora_limits.model_dump(mode="json"))
    if base.engine_path != base.path:
        served = Path(base.engine_path) / "config.json"
        settings += [base.engine_path, json.loads(served.read_bytes()) if served.is_file() else None]
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return f"{INITIAL_VERSIONS}/{fingerprint}"


def _noted(artifacts: Artifacts, key: str) -> str | None:
    try:
        digest = artifacts.read_blob(key).decode()
        artifacts.pull_adapter(digest)
    except ArtifactError:
        return None
    return digest
