"""Blobs and checkpoint directories under one fsspec root: a local folder, or any URL that fsspec supports."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from tandem.cluster.checkpoint_cache import make_room, mark_used
from tandem.cluster.errors import ArtifactError
from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG, MANIFEST, NO_OPTIMIZER, OPTIMIZER
from tandem.rl.durability import sync, write_whole

CHECKPOINTS = "checkpoints"
ADAPTERS = "adapters"
ADAPTER_FILES = (ADAPTER_CONFIG, ADAPTER)  # the files of a checkpoint that an engine loads
PAYLOADS = "payloads"
LOGS = "logs"
DATASETS = "datasets"
CALLS = "calls"
JOBS = "jobs"
TRACES = "traces"
FILES = "files"
SPOOL = "spool"
UPLOADS = "uploads"


def job_artifact_key(job_id: str, name: str) -> str:
    """Return the key of a file that a job keeps for its users."""
    return f"{JOBS}/{job_id}/{name}"


def traces_key(job_id: str, attempt: int) -> str:
    """Return the key of the traces of a job's tokens: the attempt that made the version counts."""
    return f"{TRACES}/{job_id}/{attempt}.traces"


def dataset_key(dataset_id: str) -> str:
    """Return the key of the rows of a dataset, which several jobs may use."""
    return f"{DATASETS}/{dataset_id}.jsonl.zst"


def is_dataset(key: str) -> bool:
    """Return whether a job's payload is a dataset."""
    return key.startswith(f"{DATASETS}/")


class Artifacts:
    """Durable storage of blobs and checkpoints.

    Keys are relative paths made of ids and digests. A key is written once and never changed. Directories under a local
    root are used in place; others are cached under `cache_dir`, which is limited to a share of its disk.
    """

    def __init__(self, root: str, cache_dir: str | Path | None = None):
        self._fs, self._root = filesystem_of(root)
        self._is_local = isinstance(self._fs, LocalFileSystem)
        if self._is_local:
            self._local_root = Path(self._root)
        else:
            shared = Path(tempfile.gettempdir()) / f"tandem-artifacts-{os.getuid()}"
            self._local_root = Path(cache_dir) if cache_dir else _private_directory(shared)
        self._local_root.mkdir(parents=True, exist_ok=True)
        self._shown_root = without_secrets(root)

    @property
    def checkpoints_dir(self) -> Path:
        """The local directory for new checkpoints; `push_checkpoint` then makes them durable."""
        directory = self._local_root / CHECKPOINTS
        directory.mkdir(exist_ok=True)
        return directory

    def push_checkpoint(self, digest: str) -> None:
        """Make the checkpoint `checkpoints_dir / digest` durable, manifest last: a partial copy isn't valid."""
        if self._is_local:
            return
        source, target = self.checkpoints_dir / _checked(digest), self._url(f"{CHECKPOINTS}/{digest}")
        names = sorted(file.name for file in source.iterdir() if file.name != MANIFEST)
        self._fs.put([str(source / name) for name in names], [f"{target}/{name}" for name in names])  # at once
        self._fs.put_file(str(source / MANIFEST), f"{target}/{MANIFEST}")
        make_room(self.checkpoints_dir)

    def pull_checkpoint(self, digest: str) -> Path:
        """Return the local directory of a checkpoint, copied from the root if needed. Raises ArtifactError."""
        if self._is_local:
            local = self.checkpoints_dir / _checked(digest)
            if not (local / MANIFEST).is_file():
                raise self._no_checkpoint(digest)
            return local
        return self._pull(digest, self.checkpoints_dir)

    def pull_adapter(self, digest: str) -> Path:
        """Return a local directory with at least the checkpoint's adapter, a third of its bytes. Raises ArtifactError.

        Engines don't need the optimizer's state.
        """
        if self._is_local or (self.checkpoints_dir / _checked(digest) / MANIFEST).is_file():
            return self.pull_checkpoint(digest)
        adapters = self._local_root / ADAPTERS
        adapters.mkdir(exist_ok=True)
        return self._pull(digest, adapters, (*ADAPTER_FILES, MANIFEST))

    def pull_verified_adapter(self, digest: str) -> Path:
        """Return what `pull_adapter` does. Raises CheckpointError if its files aren't those of this version."""
        from tandem.rl.checkpoints import verify_adapter

        directory = self.pull_adapter(digest)
        verify_adapter(directory, digest)
        return directory

    def _pull(self, digest: str, cache: Path, names: tuple[str, ...] | None = None) -> Path:
        """Return `cache / digest` with all files of the checkpoint, or those in `names`."""
        local, source = cache / _checked(digest), self._url(f"{CHECKPOINTS}/{digest}")
        mark_used(local)
        if (local / MANIFEST).is_file():
            return local
        if not self._fs.exists(f"{source}/{MANIFEST}"):
            raise self._no_checkpoint(digest)
        if names is None:
            names = tuple(path.rpartition("/")[2] for path in self._fs.ls(source, detail=False))
        aside = cache / f".{digest}-{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            self._fs.get([f"{source}/{name}" for name in names], [str(aside / name) for name in names])
            with suppress(OSError):  # another process has just made the same immutable copy
                aside.rename(local)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        mark_used(local)  # some file systems copy the times of what they copy
        make_room(cache)
        return local

    def _no_checkpoint(self, digest: str) -> ArtifactError:
        return ArtifactError(f"Checkpoint {digest} isn't in the artifact store {self._shown_root}.")

    def describe_checkpoint(self, digest: str, manifest: bytes) -> None:
        """Replace the manifest of a checkpoint by one with other metadata, before any other process knows the version.

        The local copy of a remote root is replaced, too.
        """
        self.write_blob(f"{CHECKPOINTS}/{digest}/{MANIFEST}", manifest)
        copy = self._local_root / CHECKPOINTS / digest / MANIFEST
        if not self._is_local and copy.is_file():
            write_whole(copy, manifest)

    def delete_checkpoint(self, digest: str) -> None:
        """Remove a checkpoint that no version refers to. A missing one is no error."""
        for copies in (CHECKPOINTS, ADAPTERS):
            shutil.rmtree(self._local_root / copies / _checked(digest), ignore_errors=True)
        remote = self._url(f"{CHECKPOINTS}/{digest}")
        if not self._is_local and self._fs.exists(remote):
            self._fs.rm(remote, recursive=True)

    def drop_optimizer(self, digest: str) -> None:
        """Delete the optimizer state of a checkpoint. No error if it is gone already.

        First it is marked as dropped, so that no reader takes the checkpoint for damaged. Copies in caches stay.
        """
        checkpoint = f"{CHECKPOINTS}/{digest}"
        if not self._fs.exists(self._url(f"{checkpoint}/{MANIFEST}")):
            return
        self.write_blob(f"{checkpoint}/{NO_OPTIMIZER}", b"")
        self.delete_blob(f"{checkpoint}/{OPTIMIZER}")

    def checkpoint_sizes(self, digest: str) -> dict[str, int]:
        """Return the size in bytes of each file of a checkpoint; none if there is no such checkpoint."""
        try:
            entries = self._fs.ls(self._url(f"{CHECKPOINTS}/{digest}"), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        return {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}

    @property
    def spool_dir(self) -> Path:
        """The local directory for files that will become blobs."""
        directory = self._local_root / SPOOL
        directory.mkdir(exist_ok=True)
        return directory

    @property
    def num_free_bytes(self) -> int:
        """Free space on the local disk, which holds the spool directory and a local root."""
        return shutil.disk_usage(self._local_root).free

    def put_blob_file(self, file: Path, key: str) -> None:
        """Make a file of `spool_dir` the durable blob `key`. The file is moved."""
        if not self._is_local:
            self._fs.put_file(str(file), self._url(key))
            file.unlink()
            return
        path = self._local_root / _checked(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        sync(file)
        file.rename(path)
        sync(path.parent)

    def write_blob(self, key: str, data: bytes) -> None:
        """Store a blob durably: it survives any crash after this returns."""
        if not self._is_local:
            self._fs.pipe_file(self._url(key), data)
            return
        path = self._local_root / _checked(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)

    def read_blob(self, key: str) -> bytes:
        """Return the blob's bytes. Raises ArtifactError if there is none."""
        try:
            data: bytes = self._fs.cat_file(self._url(key))
        except FileNotFoundError:
            raise self._missing(key) from None
        return data

    def open_blob(self, key: str) -> BinaryIO:
        """Open the blob for reading. Raises ArtifactError if there is none."""
        try:
            file: BinaryIO = self._fs.open(self._url(key), "rb")
        except FileNotFoundError:
            raise self._missing(key) from None
        return file

    def list_blobs(self, directory: str) -> list[str]:
        """Return the keys of all blobs in a directory, including incomplete ones."""
        try:
            entries = self._fs.ls(self._url(directory), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [f"{directory}/{entry['name'].rpartition('/')[2]}" for entry in entries if entry["type"] == "file"]

    def blob_size(self, key: str) -> int:
        """Return the size of the blob in bytes. Raises ArtifactError if there is none."""
        try:
            size: int = self._fs.size(self._url(key))
        except FileNotFoundError:
            raise self._missing(key) from None
        return size

    def modified_at(self, key: str) -> datetime:
        """Return when the blob was written, with a time zone. Raises FileNotFoundError if there is none."""
        when: datetime = self._fs.modified(self._url(key))
        return when

    def list_job_artifacts(self, job_id: str) -> dict[str, int]:
        """Return the files that a job kept, by name, with their sizes in bytes."""
        try:
            entries = self._fs.ls(self._url(f"{JOBS}/{job_id}"), detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        sizes = {entry["name"].rpartition("/")[2]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: sizes[name] for name in sorted(sizes) if not name.startswith(".")}  # incomplete ones

    def traced_jobs(self) -> list[str]:
        """Return the ids of the jobs that have traces."""
        try:
            entries = self._fs.ls(self._url(TRACES), detail=True, refresh=True)
        except FileNotFoundError:
            return []
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]

    def delete_traces(self, job_id: str) -> None:
        """Remove the traces of all attempts of a job. None is no error."""
        self._delete_directory(f"{TRACES}/{job_id}")

    def delete_job_artifacts(self, job_id: str) -> None:
        """Remove all files that a job kept. None is no error."""
        self._delete_directory(f"{JOBS}/{job_id}")

    def _delete_directory(self, key: str) -> None:
        directory = self._url(key)
        if self._fs.exists(directory):
            self._fs.rm(directory, recursive=True)

    def delete_blob(self, key: str) -> None:
        """Remove a blob. A missing one is no error."""
        if self._fs.exists(self._url(key)):
            self._fs.rm_file(self._url(key))

    def _missing(self, key: str) -> ArtifactError:
        return ArtifactError(f"Blob {key} isn't in the artifact store {self._shown_root}.")

    def _url(self, key: str) -> str:
        return f"{self._root}/{_checked(key)}"


def filesystem_of(root: str) -> tuple[AbstractFileSystem, str]:
    """Return the file system of a root, and the root's path there. An absolute path is never taken for a URL."""
    if root.startswith("/"):
        return LocalFileSystem(), root.rstrip("/") or "/"
    filesystem, path = fsspec.core.url_to_fs(root)
    return filesystem, path


def without_secrets(url: str) -> str:
    """Return a URL for messages and logs: without user, password and query, which may hold credentials."""
    return re.sub(r"\?.*", "?...", re.sub(r"//[^/@]*@", "//...@", url), flags=re.DOTALL)


def _checked(key: str) -> str:
    """Return the key if it stays below the root, else raise ArtifactError. A second defence: keys are made of ids."""
    if "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ArtifactError(f"{key!r} can't be a key in the artifact store: it might lead outside.")
    return key


def _private_directory(path: Path) -> Path:
    """Return a directory in a shared place, made by this user and writable by no other. Raises ArtifactError."""
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise ArtifactError(f"{path} is used to cache artifacts, but others can write to it. Remove it.")
    return path
