"""The storage of a project: the paths that its jobs may use, and no others."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from tandem.cluster.artifacts import filesystem_of
from tandem.cluster.errors import ClusterError

DATASETS = "datasets"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class StorageError(ClusterError, OSError):
    """A job can't use this path. The message names the path and the reason."""


class PathInvalidError(StorageError):
    """The text isn't a path."""


class PathDeniedError(StorageError):
    """The path lies outside the project's roots."""


@dataclass(frozen=True)
class Location:
    """A place in a file system."""

    fs: Any
    path: str
    url: str
    """The form for a user's program: a local path, or a URL that fsspec can open."""

    def exists(self) -> bool:
        return bool(self.fs.exists(self.path))

    def is_directory(self) -> bool:
        return bool(self.fs.isdir(self.path))

    def files(self) -> list[str]:
        """Return the sorted paths of all files below, or of the file itself."""
        return sorted(self.fs.find(self.path)) if self.is_directory() else [self.path]

    def fetch(self, directory: Path) -> None:
        """Copy all files below into an existing local directory."""
        for file in self.files():
            target = directory / posixpath.relpath(file, self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(file, str(target))

    def write(self, name: str, data: bytes) -> None:
        """Write one file below. Creates missing directories."""
        file = f"{self.path}/{name}"
        self.fs.makedirs(posixpath.dirname(file), exist_ok=True)
        self.fs.pipe_file(file, data)

    def lines(self, file: str) -> Iterator[bytes]:
        """Read a file line by line."""
        with self.fs.open(file, "rb") as opened:
            yield from opened

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and modification times of all files below."""
        digest = hashlib.sha256()
        for file in self.files():
            digest.update(f"{posixpath.relpath(file, self.path)} {self.fs.checksum(file)}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ProjectStorage:
    """Resolves the paths of one project.

    `/bucket/key` and `obs://bucket/key` are the same path, below `bucket_root`. Any other URL (s3://, gs://,
    file:///...) must lie below one of `roots`. Paths with `..` and links that lead out of a root are denied.
    """

    bucket_root: str
    roots: tuple[str, ...] = ()

    def resolve(self, url: str) -> Location:
        """Return the location of a path. Raises PathInvalidError or PathDeniedError."""
        if "\x00" in url or "\\" in url:
            raise PathInvalidError(f"{url!r} isn't a path.")
        protocol, separator, rest = url.partition("://")
        if not separator and not url.startswith("/"):
            raise PathInvalidError(
                f"{url!r} isn't a path: write /bucket/path, obs://bucket/path, or a URL like s3://..."
            )
        if ".." in (rest or url).split("/"):
            raise PathDeniedError(f"{url} contains '..'; write the path without it.")
        if not separator or protocol == "obs":
            inside = posixpath.normpath("/" + (rest if separator else url)).lstrip("/")
            if not inside:
                raise PathInvalidError(f"{url} names no bucket.")
            return _below(self.bucket_root, inside, url)
        for root in self.roots:
            if (below_root := _inside(url, root)) is not None:
                return _below(root, below_root, url)
        allowed = ", ".join(("/bucket/path", *self.roots))
        raise PathDeniedError(f"{url} is outside this project's storage. Use a path below one of: {allowed}.")

    def dataset(self, dataset_id: str, version: str) -> Location:
        """Return the directory of a dataset version. Raises PathInvalidError."""
        for name in (dataset_id, version):
            if not _SEGMENT.fullmatch(name) or ".." in name:
                raise PathInvalidError(
                    f"{name!r} isn't a valid name of a dataset or a version: use letters, digits, '.', '_', '-'."
                )
        return self.resolve(f"/{DATASETS}/{dataset_id}/{version}")


def _inside(url: str, root: str) -> str | None:
    """Return the URL's path relative to a root, or None if it lies outside."""
    if get_protocol(url) != get_protocol(root):
        return None
    path, base = (posixpath.normpath(filesystem_of(one)[1]) for one in (url, root))
    if path == base:
        return ""
    return path.removeprefix(base + "/") if path.startswith(base + "/") else None


def _below(root: str, inside: str, url: str) -> Location:
    fs, base = filesystem_of(root)
    path = f"{base.rstrip('/')}/{inside}" if inside else base
    if isinstance(fs, LocalFileSystem):
        real_base, real = os.path.realpath(base), os.path.realpath(path)
        if real != real_base and not real.startswith(real_base + os.sep):
            raise PathDeniedError(f"{url} follows a link out of this project's storage.")
        return Location(fs, path, path)
    return Location(fs, path, fs.unstrip_protocol(path))
