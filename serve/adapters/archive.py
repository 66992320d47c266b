"""Files as a sequence of bytes: one of an adapter, or several as a tar archive that is always the same."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from tandem.cluster.artifacts import ADAPTER_FILES, Artifacts
from tandem.rl.checkpoint_files import MANIFEST

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Content:
    """Bytes to send: parts in memory and open files, one after another."""

    parts: Sequence[bytes | BinaryIO]
    sizes: Sequence[int]

    @cached_property
    def size(self) -> int:
        return sum(self.sizes)

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`, in pieces. Closes the files at the end."""
        try:
            begin = 0
            for part, size in zip(self.parts, self.sizes, strict=True):
                first, last = max(start - begin, 0), min(stop - begin, size)
                if first < last:
                    yield from _pieces(part, first, last)
                begin += size
        finally:
            self.close()

    def close(self) -> None:
        for part in self.parts:
            if not isinstance(part, bytes):
                part.close()


def _pieces(part: bytes | BinaryIO, first: int, last: int) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part[first:last]
        return
    part.seek(first)
    while first < last:
        piece = part.read(min(PIECE_BYTES, last - first))
        if not piece:
            raise OSError(f"the file ended {last - first} bytes too early")
        first += len(piece)
        yield piece


def adapter_file(artifacts: Artifacts, digest: str, name: str) -> tuple[Content, bytes]:
    """Return a file of a version's adapter, and its SHA-256. Raises OSError, also ArtifactError."""
    directory = artifacts.pull_adapter(digest)
    recorded = json.loads((directory / MANIFEST).read_bytes())["files"][name]
    return Content([open(directory / name, "rb")], [recorded["bytes"]]), bytes.fromhex(recorded["sha256"])


def adapter_archive(artifacts: Artifacts, digest: str) -> Content:
    """Return both files of a version's adapter as an uncompressed tar archive. Raises OSError, also ArtifactError."""
    directory = artifacts.pull_adapter(digest)
    return tar_archive([(name, directory / name) for name in ADAPTER_FILES])


def tar_archive(files: Iterable[tuple[str, Path]]) -> Content:
    """Return files, under the names that they have in it, as an uncompressed tar archive. Raises OSError."""
    parts: list[bytes | BinaryIO] = []
    sizes: list[int] = []

    def add(part: bytes | BinaryIO, size: int) -> None:
        parts.append(part)
        sizes.append(size)

    for name, path in files:
        size = path.stat().st_size
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o644
        header = entry.tobuf(tarfile.PAX_FORMAT)
        add(header, len(header))
        add(open(path, "rb"), size)
        padding = -size % tarfile.BLOCKSIZE
        add(bytes(padding), padding)
    add(bytes(2 * tarfile.BLOCKSIZE), 2 * tarfile.BLOCKSIZE)
    return Content(parts, sizes)
