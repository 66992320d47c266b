"""JSON Lines: one JSON object per line, read without holding the file in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from pydantic import TypeAdapter, ValidationError

MAX_LINE_BYTES = 32 << 20
_OBJECT = TypeAdapter(dict[str, Any])


class LineError(ValueError):
    """A line that can't be used: its number, from 1, the field, and the reason."""

    def __init__(self, line: int, field: str, reason: str):
        super().__init__(line, field, reason)
        self.line, self.field, self.reason = line, field, reason

    def __str__(self) -> str:
        return f"line {self.line}: {f'{self.field}: ' if self.field else ''}{self.reason}"


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number and text of each line that isn't blank. Raise LineError for one that is too long."""
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise LineError(number, "", f"is longer than {MAX_LINE_BYTES} bytes")
        if stripped := line.strip():
            yield number, stripped


def objects(file: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and value of each line. Raise LineError for one that isn't a JSON object."""
    for number, line in lines(file):
        try:
            yield number, _OBJECT.validate_json(line)
        except ValidationError as error:
            fault = error.errors(include_url=False, include_input=False)[0]
            is_json = fault["type"] != "json_invalid"
            reason = "must be a JSON object" if is_json else f"isn't JSON in UTF-8: {fault['msg'].partition(': ')[2]}"
            raise LineError(number, "", reason) from None


def check_lines(file: BinaryIO) -> int:
    """Return the number of rows, at least 1. Raise LineError unless each is a JSON object."""
    count = sum(1 for _ in objects(file))
    if not count:
        raise LineError(1, "", "the file has no rows")
    return count
