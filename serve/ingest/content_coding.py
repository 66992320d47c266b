"""Unpacking request bodies while they arrive."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import zstandard

from tandem.serve.errors import Fault, InvalidRequestError, UnsupportedCodingError

IDENTITY = "identity"
CODINGS = ("gzip", "zstd", "deflate")
MAX_PIECE_BYTES = 1 << 20
"""A gzip stream is unpacked in pieces of at most this size."""
ZSTD_INPUT_BYTES = 1 << 10
"""A zstd decompressor gives all that its input holds, which is at most 32 MiB for this much of it."""
MAX_ZSTD_WINDOW_BYTES = 8 << 20
"""What RFC 9659 allows in HTTP."""


class Unpacker:
    """Unpacks a body. `feed` its parts in order, then `finish`; both raise InvalidRequestError for a broken body.

    A compressed body may consist of several streams, one after the other.
    """

    def __init__(self, coding: str):
        """`coding` is the request's Content-Encoding. Raises UnsupportedCodingError when it isn't known here."""
        self._coding = coding.strip().lower() or IDENTITY
        if self._coding not in _STREAMS:
            raise UnsupportedCodingError(
                f"This service doesn't unpack Content-Encoding {coding[:64]!r}. "
                f"Send the body as it is, or as one of: {', '.join(CODINGS)}."
            )
        self._new_stream = _STREAMS[self._coding]
        self._stream: _GzipStream | _ZstdStream | None = None

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What this part unpacks to, in pieces that fit into memory however well they were packed."""
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
        if self._stream is not None:
            raise self._broken("it ends too early")

    def _broken(self, reason: str) -> InvalidRequestError:
        message = f"isn't whole, valid {self._coding}, which Content-Encoding says it is: {reason}"
        return InvalidRequestError([Fault(("body",), message)], "broken_content_encoding")


class _GzipStream:
    """One gzip or zlib stream."""

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects which
        self.rest = b""

    @property
    def is_complete(self) -> bool:
        return self._decompressor.eof

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What `data` unpacks to; what comes after the stream's end is left in `rest`."""
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
        """What `data` unpacks to; what comes after the frame's end is left in `rest`."""
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
