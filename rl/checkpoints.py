"""Checkpoints of policy versions: local directories that are complete and verified, or absent.

    <parent>/<digest>/adapter_model.safetensors    the adapter under PEFT names: PEFT and vLLM load the directory
                      adapter_config.json
                      optimizer.safetensors        AdamW's tensors, "<parameter>.exp_avg" and so on; may hold none
                      manifest.json                sha256 and size of each file above, their digest, free metadata
                      optimizer.dropped            only where the optimizer's state was deleted on purpose

The digest is the sha256 of the manifest's list of files, so it names the content: the same state has the same digest
wherever and whenever it is written, and metadata (which step, which job) is no part of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG, MANIFEST, NO_OPTIMIZER, OPTIMIZER
from tandem.rl.durability import sync, write_whole
from tandem.rl.errors import AdapterError, CheckpointError
from tandem.rl.models.lora.adapter_config import lora_of, read_adapter_config
from tandem.rl.settings import LoraSettings

FILES = (ADAPTER, ADAPTER_CONFIG, OPTIMIZER)


@dataclass(frozen=True)
class LearnerState:
    """The state of a policy version, apart from its base model. Tensors on the CPU, unless it is kept for a learner."""

    adapter: dict[str, Tensor]
    """float32, under PEFT names."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """"<parameter>.step", ".exp_avg" and ".exp_avg_sq" of every adapter tensor; empty before the first step."""
    lora: LoraSettings | None = None
    """The settings that the adapter was made with; None: those of the policy that loads it."""


@dataclass(frozen=True)
class Checkpoint:
    path: Path
    digest: str


@dataclass(frozen=True)
class SealedCheckpoint:
    """A checkpoint in memory, complete and named. Nothing is written yet."""

    digest: str
    contents: Mapping[str, bytes]
    """The bytes of each file."""


def write_checkpoint(
    parent_dir: str | Path, state: LearnerState, adapter_config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> Checkpoint:
    """Seal `state` and write it, as `write_sealed` does."""
    return write_sealed(parent_dir, seal_checkpoint(state, adapter_config, metadata))


def seal_checkpoint(
    state: LearnerState, adapter_config: Mapping[str, Any], metadata: Mapping[str, Any], mark: str | None = None
) -> SealedCheckpoint:
    """Return the checkpoint of a state. Its files are hashed in memory, several at once, and never read back.

    `mark` becomes part of the content, so that no other checkpoint has the same digest.
    """
    marked = {"mark": mark} if mark else None
    adapter_json = json.dumps(adapter_config, indent=2, sort_keys=True).encode()
    contents: dict[str, bytes] = {}
    files: dict[str, dict[str, int | str]] = {}

    def add(name: str, content: Callable[[], bytes]) -> None:
        contents[name] = data = content()
        files[name] = {"bytes": len(data), "sha256": _sha256(data)}

    with ThreadPoolExecutor(2) as pool:  # hashing leaves Python to other threads
        of_adapter = pool.submit(add, ADAPTER, lambda: safetensors_torch.save(_sorted(state.adapter)))
        of_optimizer = pool.submit(add, OPTIMIZER, lambda: safetensors_torch.save(_sorted(state.optimizer), marked))
        add(ADAPTER_CONFIG, lambda: adapter_json)
        of_adapter.result(), of_optimizer.result()
    ordered = {name: files[name] for name in FILES}
    digest = _digest(ordered)
    manifest = {"digest": digest, "files": ordered, "metadata": dict(metadata)}
    contents[MANIFEST] = json.dumps(manifest, indent=2, sort_keys=True).encode()
    return SealedCheckpoint(digest, contents)


def write_sealed(parent_dir: str | Path, sealed: SealedCheckpoint) -> Checkpoint:
    """Write a checkpoint to <parent_dir>/<digest>: under another name, synced to disk, then renamed.

    If the directory exists, it is verified and kept with its metadata. An optimizer state that was dropped is written
    again.
    Raises CheckpointError if the directory can't be written, or exists but is damaged.
    """
    digest = sealed.digest
    final = Path(parent_dir) / digest
    if final.exists():
        if _is_dropped(final / OPTIMIZER):
            write_whole(final / OPTIMIZER, sealed.contents[OPTIMIZER])
        verify_checkpoint(final)
        return Checkpoint(final, digest)
    aside = final.with_name(f".{digest}-{uuid.uuid4().hex}")
    try:
        _write_directory(aside, sealed.contents)
        _rename_unless_there(aside, final)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {final} could not be written: {error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Checkpoint(final, digest)


def read_checkpoint(path: str | Path) -> LearnerState:
    """Read and verify the state in a checkpoint directory, without optimizer state if it was dropped.

    Raises CheckpointError.
    """
    path = Path(path)
    expected = _read_manifest(path)["files"]
    optimizer = {} if _is_dropped(path / OPTIMIZER) else _read_tensors(path / OPTIMIZER, expected)
    return LearnerState(adapter=_read_tensors(path / ADAPTER, expected), optimizer=optimizer)


def read_adapter(path: str | Path) -> dict[str, Tensor]:
    """Read and verify the adapter alone; the directory needs no optimizer state. Raises CheckpointError."""
    path = Path(path)
    return _read_tensors(path / ADAPTER, _read_manifest(path)["files"])


def read_lora(path: str | Path) -> LoraSettings:
    """Read and verify the LoRA settings of a checkpoint's adapter. Raises CheckpointError."""
    path = Path(path)
    content = _read_verified(path / ADAPTER_CONFIG, _read_manifest(path)["files"])
    try:
        return lora_of(read_adapter_config(content))
    except AdapterError as error:
        raise CheckpointError(f"{path} has an adapter that can't be trained: {error}.") from error


def verify_adapter(path: str | Path, digest: str) -> None:
    """Raise CheckpointError unless the directory has the adapter of the version with this digest, unchanged."""
    path = Path(path)
    manifest = _read_manifest(path)
    if manifest["digest"] != digest:
        raise CheckpointError(f"{path} is the checkpoint {manifest['digest']}, not {digest}. {_ADVICE}")
    for name in (ADAPTER, ADAPTER_CONFIG):
        _read_verified(path / name, manifest["files"])


def verify_checkpoint(path: str | Path) -> None:
    """Raise CheckpointError, with the file and the difference, unless every file matches the manifest."""
    path = Path(path)
    expected = _read_manifest(path)["files"]
    for name in FILES:
        _read_verified(path / name, expected)


def _is_dropped(optimizer: Path) -> bool:
    return not optimizer.exists() and (optimizer.parent / NO_OPTIMIZER).exists()


def _read_manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(_read(file))
        files, digest = manifest["files"], manifest["digest"]
        missing = [name for name in FILES if set(files[name]) != {"bytes", "sha256"}]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is not the manifest of a checkpoint ({error!r}). {_ADVICE}") from error
    if missing or _digest(files) != digest:
        raise CheckpointError(f"{file} has been changed: its digest {digest} is not that of its files. {_ADVICE}")
    return manifest


def _read_tensors(file: Path, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    data = _read_verified(file, expected)
    try:
        return safetensors_torch.load(data)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}. {_ADVICE}") from error


def _read_verified(file: Path, expected: Mapping[str, Any]) -> bytes:
    data, wanted = _read(file), expected[file.name]
    if len(data) != wanted["bytes"]:
        raise CheckpointError(f"{file} has {len(data)} bytes, its manifest says {wanted['bytes']}. {_ADVICE}")
    if _sha256(data) != wanted["sha256"]:
        raise CheckpointError(f"{file} has sha256 {_sha256(data)}, its manifest says {wanted['sha256']}. {_ADVICE}")
    return data


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} can't be read: {error.strerror}. {_ADVICE}") from error


def _write_directory(path: Path, contents: Mapping[str, bytes]) -> None:
    path.mkdir(parents=True)

    def write(name: str) -> None:
        (path / name).write_bytes(contents[name])
        sync(path / name)

    with ThreadPoolExecutor(len(contents)) as pool:  # the disk takes its time for each, but for several at once
        list(pool.map(write, contents))
    sync(path)


def _rename_unless_there(aside: Path, final: Path) -> None:
    """Rename, unless another writer of the same state was first; its directory has the same content."""
    try:
        os.rename(aside, final)
    except OSError:
        if not final.exists():
            raise
    sync(final.parent)


def _sorted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name].contiguous() for name in sorted(tensors)}


def _digest(files: Mapping[str, Any]) -> str:
    return _sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_ADVICE = "Remove the directory and fetch or train this version again."
