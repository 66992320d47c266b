"""What an artifact is made of: uploaded training data, or the adapter of a model's version."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, cast

import zstandard

from tandem.cluster.artifacts import ADAPTER_FILES, Artifacts
from tandem.serve.errors import NotFoundError
from tandem.serve.store.tables.training import ModelRow
from tandem.serve.store.tables.wandb import WandbArtifactRow, WandbFileRow
from tandem.serve.store.uploads.datasets import Datasets
from tandem.serve.store.uploads.wandb import LATEST
from tandem.serve.wandb.ids import make_id

CHUNK_BYTES = 1 << 20
Type = Literal["dataset", "lora"]


@dataclass(frozen=True)
class FileInfo:
    num_bytes: int
    md5: str
    """In base64, as W&B manifests have it."""


class Source(Protocol):
    """One version of an artifact."""

    @property
    def id(self) -> str: ...
    @property
    def type(self) -> Type: ...
    @property
    def project(self) -> str: ...
    @property
    def collection(self) -> str: ...
    @property
    def version_index(self) -> int | None: ...
    @property
    def aliases(self) -> list[str]: ...
    @property
    def digest(self) -> str: ...
    @property
    def is_committed(self) -> bool: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def metadata(self) -> Mapping[str, Any]: ...
    @property
    def sizes(self) -> Mapping[str, int]:
        """Name to size of each file."""

    @property
    def files(self) -> Mapping[str, FileInfo]:
        """The files by name. May read all of their bytes."""

    def open(self, name: str) -> BinaryIO | Path:
        """Return a file as a stream or as a path. Raises NotFoundError."""


@dataclass(frozen=True)
class ModelVersion:
    """The adapter of a model's version, as an artifact of type lora. Its version number is the step."""

    artifacts: Artifacts
    model: ModelRow
    step: int
    digest: str
    created_at: datetime
    is_newest: bool
    metadata: Mapping[str, Any]
    type: Type = "lora"
    is_committed: bool = True

    @property
    def id(self) -> str:
        return make_id("Checkpoint", self.model.id, self.step)

    @property
    def project(self) -> str:
        return self.model.project

    @property
    def collection(self) -> str:
        return self.model.name

    @property
    def version_index(self) -> int | None:
        return self.step

    @property
    def aliases(self) -> list[str]:
        return [f"step{self.step}", *([LATEST] if self.is_newest else [])]

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        sizes = self.artifacts.checkpoint_sizes(self.digest)
        return {name: sizes[name] for name in ADAPTER_FILES if name in sizes}

    @cached_property
    def files(self) -> Mapping[str, FileInfo]:
        directory = self.artifacts.pull_verified_adapter(self.digest)
        return {name: _info(directory / name) for name in ADAPTER_FILES}

    def open(self, name: str) -> BinaryIO | Path:
        if name not in ADAPTER_FILES:
            raise no_file(self, name)
        return self.artifacts.pull_adapter(self.digest) / name


@dataclass(frozen=True)
class UploadedArtifact:
    """Training data that a client uploads or has uploaded; also an adapter whose upload isn't complete."""

    artifacts: Artifacts
    datasets: Datasets
    row: WandbArtifactRow
    file_rows: tuple[WandbFileRow, ...]
    is_newest: bool

    @property
    def id(self) -> str:
        return make_id("Artifact", self.row.id)

    @property
    def type(self) -> Type:
        return "lora" if self.row.type == "lora" else "dataset"

    @property
    def project(self) -> str:
        return self.row.project

    @property
    def collection(self) -> str:
        return self.row.collection

    @property
    def version_index(self) -> int | None:
        return self.row.version_index

    @property
    def aliases(self) -> list[str]:
        given = [alias for alias in self.row.aliases if alias != LATEST]
        return [*given, *([LATEST] if self.is_newest else [])]

    @property
    def digest(self) -> str:
        return self.row.digest

    @property
    def is_committed(self) -> bool:
        return self.row.committed_at is not None

    @property
    def created_at(self) -> datetime:
        return self.row.created_at

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.row.artifact_metadata

    @property
    def sizes(self) -> Mapping[str, int]:
        return {row.name: row.num_bytes or 0 for row in self.file_rows}

    @property
    def files(self) -> Mapping[str, FileInfo]:
        return {row.name: FileInfo(row.num_bytes or 0, row.md5) for row in self.file_rows}

    def open(self, name: str) -> BinaryIO | Path:
        file = next((row for row in self.file_rows if row.name == name), None)
        if file is None or not self.is_committed:
            raise no_file(self, name)
        if file.blob_key is not None:
            return self.artifacts.open_blob(file.blob_key)
        dataset = self.datasets.find(self.row.entity, file.sha256 or "")
        if dataset is None:
            raise NotFoundError(f"The dataset of artifact {self.collection} was deleted.", "dataset_not_found")
        compressed = self.artifacts.open_blob(dataset.blob_key)
        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(compressed, closefd=True))


def no_file(source: Source, name: str) -> NotFoundError:
    return NotFoundError(
        f"Artifact {source.collection} has no file {name!r}. Its files are {', '.join(source.sizes) or 'gone'}.",
        "file_not_found",
    )


def _info(path: Path) -> FileInfo:
    with path.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").digest()
    return FileInfo(path.stat().st_size, base64.b64encode(md5).decode())
