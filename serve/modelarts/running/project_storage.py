"""The storage of a project: which paths its jobs may name, and where they lead. Nothing else can be reached."""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import get_protocol

from tandem.cluster.errors import ClusterError

DATASETS = "datasets"
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")


class StorageError(ClusterError, OSError):
    """A path that a job names can't be used. The message names it and says why."""


class PathInvalidError(StorageError):
    """It isn't a path, or there is nothing there."""


class PathDeniedError(StorageError):
    """It lies outside of the project's roots."""


@dataclass(frozen=True)
class Location:
    """A place in a file system."""

    fs: Any
    path: str
    url: str
    """What a user's program is given: a local path, or the URL of a file system that fsspec knows."""

    def exists(self) -> bool:
        return self.fs.exists(self.path)

    def is_directory(self) -> bool:
        return self.fs.isdir(self.path)

    def files(self) -> list[str]:
        """The paths of all files below, or of this one, sorted."""
        return sorted(self.fs.find(self.path)) if self.is_directory() else [self.path]

    def fetch(self, directory: Path) -> None:
        """Copies everything below into a local directory that exists."""
        for file in self.files():
            target = directory / posixpath.relpath(file, self.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fs.get_file(file, str(target))

    def write(self, name: str, data: bytes) -> None:
        """Writes one file below, making directories where there are such."""
        file = f"{self.path}/{name}"
        self.fs.makedirs(posixpath.dirname(file), exist_ok=True)
        self.fs.pipe_file(file, data)

    def lines(self, file: str) -> Iterator[bytes]:
        """The lines of a file, without reading all of it at once."""
        with self.fs.open(file, "rb") as opened:
            yield from opened

    def fingerprint(self) -> str:
        """Of names, sizes and times of change: another one means that something below was changed."""
        digest = hashlib.sha256()
        for file in self.files():
            digest.update(f"{posixpath.relpath(file, self.path)} {self.fs.checksum(file)}\n".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ProjectStorage:
    """Where the paths of one project lead.

    `/bucket/key` and `obs://bucket/key` are the same path, below `bucket_root`. Every other URL (s3://, gs://,
    file:///...) must lie below one of `roots`. A path with `..`, or a link that leads out, leads nowhere.
    """

    bucket_root: str
    roots: tuple[str, ...] = ()

    def resolve(self, url: str) -> Location:
        """Raises PathInvalidError or PathDeniedError."""
        if "\x00" in url or "\\" in url:
            raise PathInvalidError(f"{url!r} isn't a path.")
        protocol, separator, rest = url.partition("://")
        if not separator and not url.startswith("/"):
            raise PathInvalidError(
                f"{url!r} isn't a path: write /bucket/path, obs://bucket/path, or a URL like s3://..."
            )
        if ".." in (rest or url).split("/"):
            raise PathDeniedError(f"{url} has '..' in it; write the path without.")
        if not separator or protocol == "obs":
            inside = posixpath.normpath("/" + (rest if separator else url)).lstrip("/")
            if not inside:
                raise PathInvalidError(f"{url} names no bucket.")
            return _below(self.bucket_root, inside, url)
        for root in self.roots:
            if (inside := _inside(url, root)) is not None:
                return _below(root, inside, url)
        allowed = ", ".join(("/bucket/path", *self.roots))
        raise PathDeniedError(f"{url} is outside of what this project may use: {allowed}.")

    def dataset(self, dataset_id: str, version: str) -> Location:
        """The directory of a dataset's version. Raises PathInvalidError."""
        for name in (dataset_id, version):
            if not _SEGMENT.fullmatch(name) or ".." in name:
                raise PathInvalidError(
                    f"{name!r} can't name a dataset or a version: use letters, digits, '.', '_', '-'."
                )
        return self.resolve(f"/{DATASETS}/{dataset_id}/{version}")


def _inside(url: str, root: str) -> str | None:
    """The rest of a URL below a root of the same file system; None when it isn't there."""
    if get_protocol(url) != get_protocol(root):
        return None
    path, base = (posixpath.normpath(fsspec.core.url_to_fs(one)[1]) for one in (url, root))
    if path == base:
        return ""
    return path.removeprefix(base + "/") if path.startswith(base + "/") else None


def _below(root: str, inside: str, url: str) -> Location:
    fs, base = fsspec.core.url_to_fs(root)
    path = f"{base.rstrip('/')}/{inside}" if inside else base
    if isinstance(fs, LocalFileSystem):
        real_base, real = os.path.realpath(base), os.path.realpath(path)
        if real != real_base and not real.startswith(real_base + os.sep):
            raise PathDeniedError(f"{url} leads out of what this project may use, by a link.")
        return Location(fs, path, path)
    return Location(fs, path, fs.unstrip_protocol(path))
