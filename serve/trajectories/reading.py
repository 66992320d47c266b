"""Reads one trajectory of a stored payload, which may be a gigabyte.

Decompressing up to it takes half a second in the worst case (benchmarks/LOG.md); nothing before it is parsed.
"""

from __future__ import annotations

from collections.abc import Iterator

import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.json_splitting import CHUNK_BYTES


def read_part(artifacts: Artifacts, key: str, start: int, num_bytes: int) -> Iterator[bytes]:
    """Yield the bytes of a payload from an offset of its uncompressed text on, in pieces of a bounded size.

    Raises ArtifactError with the first piece if the payload is missing, and later if it is damaged.
    """
    end, place = start + num_bytes, 0
    try:
        with artifacts.open_blob(key) as file, zstandard.ZstdDecompressor().stream_reader(file) as body:
            while place < end and (chunk := body.read(CHUNK_BYTES)):
                if place + len(chunk) > start:
                    yield chunk[max(start - place, 0) : end - place]
                place += len(chunk)
    except zstandard.ZstdError as error:
        raise ArtifactError(f"Blob {key} is damaged: {error}.") from error
    if place < end:
        raise ArtifactError(f"Blob {key} is damaged: it ends too early.")
