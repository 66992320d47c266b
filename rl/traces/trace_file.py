"""One file with the traces of a job: a table of its groups, then the bytes of each, so that one can be read alone.

8 bytes  magic number and version of the format
4 bytes  length of the table, little endian
table    JSON, zstd
groups   as `group_trace` writes them
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import zstandard
from pydantic import BaseModel, ConfigDict

from tandem.rl.traces.group_trace import SequenceTrace, pack_group, unpack_group

MAGIC = b"TDMTRC\x00\x01"
_LENGTH = struct.Struct("<I")


class TraceFileError(ValueError):
    """The bytes aren't those of a trace file of this release."""


class GroupEntry(BaseModel):
    """A group in the table."""

    model_config = ConfigDict(frozen=True)

    group: int
    offset: int
    """In bytes, from the end of the table."""
    size: int
    num_sequences: int
    num_trained: int


class TraceTable(BaseModel):
    """What a file holds, and how much of its job it doesn't."""

    model_config = ConfigDict(frozen=True)

    kind: str
    """Of the job."""
    num_trained: int
    """Trained tokens with traces."""
    num_trained_not_kept: int = 0
    """Trained tokens without: the configuration limits them."""
    num_groups_not_kept: int = 0
    groups: list[GroupEntry] = []


@dataclass(frozen=True)
class TraceFile:
    """A file that is open for reading."""

    table: TraceTable
    _file: BinaryIO
    _start: int

    @classmethod
    def open(cls, file: BinaryIO) -> TraceFile:
        """Read the table. Raises TraceFileError."""
        head = file.read(len(MAGIC) + _LENGTH.size)
        if len(head) != len(MAGIC) + _LENGTH.size or not head.startswith(MAGIC):
            raise TraceFileError("These aren't traces that this release can read.")
        [length] = _LENGTH.unpack(head[len(MAGIC) :])
        table = zstandard.ZstdDecompressor().decompress(file.read(length))
        return cls(TraceTable.model_validate_json(table), file, len(head) + length)

    def group(self, group: int) -> list[SequenceTrace] | None:
        """Return the traces of a group, by trajectory; None if the file has none of it."""
        entry = next((entry for entry in self.table.groups if entry.group == group), None)
        if entry is None:
            return None
        self._file.seek(self._start + entry.offset)
        return unpack_group(self._file.read(entry.size))


def write_traces(
    groups: Iterable[tuple[int, Sequence[SequenceTrace]]], kind: str, not_kept: Mapping[int, int]
) -> bytes:
    """Return the bytes of a file. `not_kept` has the trained tokens of each group that has no traces."""
    entries, parts, offset, num_trained = [], [], 0, 0
    for group, sequences in groups:
        part = pack_group(sequences)
        trained = sum(int(one.loss_mask.sum()) for one in sequences)
        entries.append(
            GroupEntry(group=group, offset=offset, size=len(part), num_sequences=len(sequences), num_trained=trained)
        )
        parts.append(part)
        offset, num_trained = offset + len(part), num_trained + trained
    table = TraceTable(
        kind=kind,
        num_trained=num_trained,
        num_trained_not_kept=sum(not_kept.values()),
        num_groups_not_kept=len(not_kept),
        groups=entries,
    )
    packed = zstandard.ZstdCompressor().compress(table.model_dump_json().encode())
    return b"".join([MAGIC, _LENGTH.pack(len(packed)), packed, *parts])
