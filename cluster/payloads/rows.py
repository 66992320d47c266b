"""Read the rows of supervised data from stored JSON lines, one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.payloads.compressed import decompressed
from tandem.cluster.payloads.reading import MANY_FAULTS, FaultDetails, PayloadError, place_of_role
from tandem.cluster.payloads.strict_json import not_finite_place
from tandem.rl.supervised.rows import SupervisedRow

MAX_LINE_BYTES = 32 << 20
_BOM = b"\xef\xbb\xbf"
Row = TypeVar("Row", bound=BaseModel)
_PLACE = re.compile(r" at line \d+ column (\d+)")


@overload
def read_rows(artifacts: Artifacts, key: str) -> Iterator[tuple[int, SupervisedRow]]: ...
@overload
def read_rows(artifacts: Artifacts, key: str, row_type: type[Row]) -> Iterator[tuple[int, Row]]: ...
def read_rows(artifacts: Artifacts, key: str, row_type: type[Any] = SupervisedRow) -> Iterator[tuple[int, Any]]:
    """Yield the rows of stored data (JSON lines, zstd) with their lines, counted from 1. Blank lines are skipped.

    Raises PayloadError at the first invalid row, with the faults of all rows (the first thousand or so), and
    ArtifactError if the data is missing or damaged.
    """
    faults: list[FaultDetails] = []
    for number, line in enumerate(_lines(artifacts, key), start=1):
        if not line.strip():
            continue
        row = _parse(line, number, row_type, faults)
        if row is not None and not faults:
            yield number, row
        elif len(faults) > MANY_FAULTS:
            break
    if faults:
        raise PayloadError(faults)


@dataclass
class RowCounts:
    """The size of supervised data, and how many rows have keys that training doesn't read."""

    num_rows: int = 0
    ignored_fields: dict[str, int] = field(default_factory=dict)


def count_rows(artifacts: Artifacts, key: str) -> RowCounts:
    """Return the counts of valid data. Raises as `read_rows` does."""
    counts = RowCounts()
    for _, row in read_rows(artifacts, key):
        counts.num_rows += 1
        for name in row.ignored_fields():
            counts.ignored_fields[name] = counts.ignored_fields.get(name, 0) + 1
    return counts


def _parse(line: bytes, number: int, row_type: type[Row], faults: list[FaultDetails]) -> Row | None:
    """Return the row, or add its faults to `faults` and return None."""
    try:
        row = row_type.model_validate_json(line)
    except ValidationError as error:
        for e in error.errors(include_url=False, include_context=False, include_input=False):
            message = _PLACE.sub(r" at column \1 of this line", e["msg"])
            loc = place_of_role(from_json(line), e["loc"]) if e["type"] == "message" else e["loc"]
            faults.append({"loc": ("line", number, *loc), "msg": message, "type": e["type"]})
        return None
    if (inside := not_finite_place(line)) is not None:
        loc = ("line", number, *inside)
        faults.append({"loc": loc, "msg": "JSON has neither NaN nor infinities", "type": "not_finite"})
        return None
    return row


def _lines(artifacts: Artifacts, key: str) -> Iterator[bytes]:
    """Yield the lines, of which one is in memory at a time."""
    rest, number, is_first = bytearray(), 1, True
    with artifacts.open_blob(key) as file:
        for chunk in decompressed(file, key):
            if is_first:
                chunk, is_first = chunk.removeprefix(_BOM), False
            *complete, last = chunk.split(b"\n")
            for part in complete:
                yield bytes(rest) + part
                rest.clear()
                number += 1
            rest += last
            if len(rest) > MAX_LINE_BYTES:
                message = f"is longer than {MAX_LINE_BYTES} bytes; send shorter rows"
                raise PayloadError([{"loc": ("line", number), "msg": message, "type": "row_too_long"}])
    if rest:
        yield bytes(rest)
