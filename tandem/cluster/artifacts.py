"""Blobs and checkpoint directories under one fsspec root: a local folder, or any URL that fsspec knows (s3://...)."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from tandem.cluster.errors import ArtifactError

CHECKPOINTS = "checkpoints"
PAYLOADS = "payloads"
JOBS = "jobs"


def job_artifact_key(job_id: str, name: str) -> str:
    """The key of a file that a job leaves to be looked at."""
    return f"{JOBS}/{job_id}/{name}"


class Artifacts:
    """Durable storage for what must outlive every process.

    Keys are relative paths that this class's callers make from ids and digests. A key is written once and never
    changed. With a local root, directories are used where they are; otherwise they are cached under `cache_dir`.
    """

    def __init__(self, root: str, cache_dir: str | Path | None = None):
        self._fs, self._root = fsspec.core.url_to_fs(root)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        if self._is_local:
            self._local_root = Path(self._root)
        else:
            self._local_root = Path(cache_dir or Path(tempfile.gettempdir()) / f"tandem-artifacts-{os.getuid()}")
        self._local_root.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoints_dir(self) -> Path:
        """The local directory new checkpoints are written into; `push_checkpoint` then makes them durable."""
        directory = self._local_root / CHECKPOINTS
        directory.mkdir(exist_ok=True)
        return directory

    def push_checkpoint(self, digest: str) -> None:
        """Makes the checkpoint `checkpoints_dir / digest` durable, the manifest last: half a copy is never valid."""
        if self._is_local:
            return
        source, target = self.checkpoints_dir / digest, f"{self._root}/{CHECKPOINTS}/{digest}"
        for file in sorted(source.iterdir(), key=lambda f: f.name == "manifest.json"):
            self._fs.put_file(str(file), f"{target}/{file.name}")

    def pull_checkpoint(self, digest: str) -> Path:
        """The local directory of a checkpoint, copied from the root when it isn't here. Raises ArtifactError."""
        local = self.checkpoints_dir / digest
        if (local / "manifest.json").is_file():
            return local
        source = f"{self._root}/{CHECKPOINTS}/{digest}"
        if self._is_local or not self._fs.exists(f"{source}/manifest.json"):
            raise ArtifactError(f"Checkpoint {digest} isn't in the artifact store {self._root}.")
        aside = self.checkpoints_dir / f".{digest}-{uuid.uuid4().hex}"
        self._fs.get(source, str(aside), recursive=True)
        try:
            aside.rename(local)
        except OSError:  # another process has just made the same immutable copy
            shutil.rmtree(aside, ignore_errors=True)
        return local

    def delete_checkpoint(self, digest: str) -> None:
        """Removes a checkpoint that no version refers to any more. A missing one is no error."""
        shutil.rmtree(self.checkpoints_dir / digest, ignore_errors=True)
        remote = f"{self._root}/{CHECKPOINTS}/{digest}"
        if not self._is_local and self._fs.exists(remote):
            self._fs.rm(remote, recursive=True)

    def write_blob(self, key: str, data: bytes) -> None:
        """Stores a blob durably: when this returns, it survives a crash of the machine's processes."""
        if not self._is_local:
            self._fs.pipe_file(f"{self._root}/{key}", data)
            return
        path = self._local_root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read_blob(self, key: str) -> bytes:
        """The blob's bytes. Raises ArtifactError when there is none."""
        try:
            return self._fs.cat_file(f"{self._root}/{key}")
        except FileNotFoundError:
            raise ArtifactError(f"Blob {key} isn't in the artifact store {self._root}.") from None

    def list_job_artifacts(self, job_id: str) -> dict[str, int]:
        """The files that a job has left, by name, with their sizes in bytes."""
        try:
            entries = self._fs.ls(f"{self._root}/{JOBS}/{job_id}", detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: sizes[name] for name in sorted(sizes) if not name.startswith(".")}  # those are being written

    def delete_job_artifacts(self, job_id: str) -> None:
        """Removes all files that a job has left. None is no error."""
        directory = f"{self._root}/{JOBS}/{job_id}"
        if self._fs.exists(directory):
            self._fs.rm(directory, recursive=True)

    def delete_blob(self, key: str) -> None:
        """Removes a blob. A missing one is no error."""
        if self._fs.exists(f"{self._root}/{key}"):
            self._fs.rm_file(f"{self._root}/{key}")
