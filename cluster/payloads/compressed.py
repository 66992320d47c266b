"""Stored bodies: one zstd frame each, whose end is checked here, because a decompressor doesn't miss it."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import IO, cast

import zstandard

from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.json_splitting import CHUNK_BYTES

_HEAD_BYTES, _BLOCK_HEAD_BYTES, _CHECKSUM_BYTES = 5, 3, 4
_REPEATED = 1
"""The type of a block that is one byte, many times."""


def compressor(level: int = 3) -> zstandard.ZstdCompressor:
    """Return a compressor for bodies that are stored: with a checksum of their content."""
    return zstandard.ZstdCompressor(level, write_checksum=True)


def decompressed(file: IO[bytes], name: str, is_arriving: bool = False) -> Iterator[bytes]:
    """Yield the content of a body in chunks of at most CHUNK_BYTES. Errors call the body `name`.

    With `is_arriving`, more of the body may come after the content that there is, and its end isn't checked.

    Raises ArtifactError, with the place, if the body is damaged. Damage of its end shows once all has been yielded.
    """
    frame = _FrameFile(file)
    try:
        with zstandard.ZstdDecompressor().stream_reader(cast(IO[bytes], frame), closefd=False) as body:
            # Not `read`, which asks an open body for more than a part that is there already.
            while chunk := body.read1(CHUNK_BYTES):
                yield chunk
    except zstandard.ZstdError as error:
        raise ArtifactError(f"Blob {name} is damaged, in its first {frame.num_read} bytes: {error}.") from error
    if is_arriving:
        return
    while frame.read(CHUNK_BYTES):
        pass
    if not frame.is_complete:
        raise ArtifactError(f"Blob {name} is damaged: it ends too early, after {frame.num_read} bytes.")
    if frame.num_read > frame.num_bytes:
        raise ArtifactError(
            f"Blob {name} is damaged: it has {frame.num_read} bytes, and its content ends after {frame.num_bytes}."
        )


class _FrameFile:
    """A file with one zstd frame, which is followed from block to block while it is read."""

    def __init__(self, file: IO[bytes]):
        self._file, self._parts = file, _parts_of_frame()
        self._missing, self._part = next(self._parts), b""
        self.num_read = 0
        self.num_bytes = 0
        """Of the frame, as far as it has been read."""
        self.is_complete = False

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.num_read += len(data)
        place = 0
        while place < len(data) and not self.is_complete:
            num = min(self._missing, len(data) - place)
            self._part += data[place : place + min(num, _HEAD_BYTES)]
            place, self._missing = place + num, self._missing - num
            if self._missing == 0:
                self._begin_next_part()
        self.num_bytes += place
        return data

    def _begin_next_part(self) -> None:
        try:
            self._missing, self._part = self._parts.send(self._part), b""
        except StopIteration:
            self.is_complete = True


def _parts_of_frame() -> Generator[int, bytes, None]:
    """Yield the lengths of a frame's parts. It is sent the bytes of heads, and anything for other parts.

    Format: RFC 8878, sections 3.1.1.1 and 3.1.1.2.
    """
    descriptor = (yield _HEAD_BYTES)[-1]
    is_single_segment = bool(descriptor & 1 << 5)
    num_of_window = 0 if is_single_segment else 1
    num_of_dictionary = (0, 1, 2, 4)[descriptor & 3]
    num_of_content_size = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if num_bytes := num_of_window + num_of_dictionary + num_of_content_size:
        yield num_bytes
    is_last = False
    while not is_last:
        head = int.from_bytes((yield _BLOCK_HEAD_BYTES), "little")
        is_last, kind, size = bool(head & 1), head >> 1 & 3, head >> 3
        if num_bytes := 1 if kind == _REPEATED else size:
            yield num_bytes
    if descriptor & 1 << 2:
        yield _CHECKSUM_BYTES
