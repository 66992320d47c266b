"""A large body becomes a file, in memory that doesn't grow with it."""

from __future__ import annotations

import hashlib
import uuid
from contextlib import suppress
from pathlib import Path

from tandem.cluster.payloads.compressed import compressor
from tandem.cluster.payloads.json_splitting import CHUNK_BYTES, JsonSplitter
from tandem.serve.errors import TooLargeError

MAX_ENVELOPE_BYTES = 1 << 20
"""Of a body without the elements of its arrays; ids and options take a few kilobytes."""
COMPRESSION_LEVEL = 1  # takes a third of the time of the default level, for about the same size


class BodyFile:
    """A file that becomes a blob. `write` hashes and compresses (zstd) the body.

    One thread at a time may `write` and `finish`; `discard` may be called at any time.
    """

    def __init__(self, directory: Path, suffix: str):
        self.path = directory / f"{uuid.uuid4()}{suffix}"
        self.num_bytes = 0
        self._hash = hashlib.sha256()
        self._compressor = compressor(COMPRESSION_LEVEL).compressobj()
        self._file = open(self.path, "wb")

    @property
    def sha256(self) -> str:
        """Return the hash of the uncompressed body."""
        return self._hash.hexdigest()

    def write(self, piece: bytes) -> None:
        """Append a piece of the body. Raises OSError."""
        self._hash.update(piece)
        self._file.write(self._compressor.compress(piece))
        self.num_bytes += len(piece)

    def finish(self) -> None:
        """Complete the file. Raises OSError."""
        self._file.write(self._compressor.flush())
        self._file.close()

    def discard(self) -> None:
        """Remove the file, unless it has become a blob."""
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # buffered data that can't be written any more
            self._file.close()


class Spool(BodyFile):
    """A body with trajectory groups, of which the JSON envelope is kept."""

    def __init__(self, directory: Path):
        super().__init__(directory, ".json.zst")
        self.json = JsonSplitter(with_elements=False)

    def write(self, piece: bytes) -> None:
        """Append a piece of the body. Raises OSError, and TooLargeError for an oversized envelope."""
        for start in range(0, len(piece), CHUNK_BYTES):
            chunk = piece[start : start + CHUNK_BYTES]
            super().write(chunk)
            self.json.feed(chunk)
            if len(self.json.envelope) > MAX_ENVELOPE_BYTES:
                raise TooLargeError(
                    f"The body has more than {MAX_ENVELOPE_BYTES} bytes outside of its trajectory groups. "
                    "Send only the fields that this route documents.",
                    "body_too_large",
                )
