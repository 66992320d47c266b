"""Decodes compressed request bodies while they arrive."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from tandem.serve.errors import InvalidRequestError, Problem, UnsupportedCodingError

IDENTITY = "identity"
CODINGS = ("gzip", "zstd", "deflate")
MAX_PIECE_BYTES = 1 << 20
"""The most that a gzip stream decodes at a time."""
ZSTD_INPUT_BYTES = 1 << 10
"""A zstd decompressor returns all that its input decodes to: at most 32 MiB for an input of this size."""
MAX_ZSTD_WINDOW_BYTES = 8 << 20
"""The limit of RFC 9659 for HTTP."""


class Unpacker:
    """Decodes a body: `feed` its parts in order, then `finish`. Both raise InvalidRequestError for a damaged body.

    A compressed body may consist of several streams, one after the other.
    """

    def __init__(self, coding: str):
        """`coding` is the request's Content-Encoding. Raises UnsupportedCodingError."""
        self._coding = coding.strip().lower() or IDENTITY
        if self._coding not in _STREAMS:
            raise UnsupportedCodingError(
                f"Content-Encoding {coding[:64]!r} isn't supported. "
                f"Send the body uncompressed, or as one of: {', '.join(CODINGS)}."
            )
        self._new_stream = _STREAMS[self._coding]
        self._stream: _GzipStream | _ZstdStream | None = None

    @property
    def is_identity(self) -> bool:
        return self._new_stream is None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded part, in pieces that fit into memory at any compression ratio."""
        if self._new_stream is None:
            yield data
            return
        while data:
            self._stream = self._stream or self._new_stream()
            try:
                yield from self._stream.unpack(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise self._broken(str(error)) from None
            data = self._stream.rest
            if self._stream.is_complete:
                self._stream = None

    def finish(self) -> None:
        """Check that the body is complete."""
        if self._stream is not None:
            raise self._broken("it ends too early")

    def _broken(self, reason: str) -> InvalidRequestError:
        message = f"isn't valid {self._coding}, as its Content-Encoding says: {reason}"
        return InvalidRequestError([Problem(("body",), message)], "broken_content_encoding")


class _GzipStream:
    """One gzip or zlib stream."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # accepts either header
        self.rest = b""

    @property
    def is_complete(self) -> bool:
        return self._decompressor.eof

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded data. Data after the end of the stream is left in `rest`."""
        while data and not self._decompressor.eof:
            yield self._decompressor.decompress(data, MAX_PIECE_BYTES)
            data = self._decompressor.unconsumed_tail
        self.rest = self._decompressor.unused_data


class _ZstdStream:
    """One zstd frame."""

    def __init__(self) -> None:
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES).decompressobj()
        self.rest = b""

    @property
    def is_complete(self) -> bool:
        return self._decompressor.eof

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """Yield the decoded data. Data after the end of the frame is left in `rest`."""
        end = 0
        while end < len(data) and not self._decompressor.eof:
            begin, end = end, end + ZSTD_INPUT_BYTES
            yield self._decompressor.decompress(data[begin:end])
        self.rest = self._decompressor.unused_data + data[end:]


_STREAMS: dict[str, type[_GzipStream] | type[_ZstdStream] | None] = {
    IDENTITY: None,
    "gzip": _GzipStream,
    "x-gzip": _GzipStream,
    "deflate": _GzipStream,
    "zstd": _ZstdStream,
}
