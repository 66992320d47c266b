"""The rows of an uploaded file, read where they are needed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, BinaryIO

from tandem.serve.finetuning.data.lines import LineError
from tandem.serve.finetuning.data.rows import read_row


class RowFile:
    """All rows of a file are checked at once. Afterwards only their places are in memory.

    Raises LineError for a row that the method can't use, or a file without rows.
    """

    def __init__(self, file: BinaryIO, method: str):
        self._file, self._method = file, method
        self._places, self._numbers = array("Q"), array("Q")
        number, place = 0, 0
        while line := file.readline():
            number += 1
            if line.strip():
                read_row(number, line, method)
                self._places.append(place)
                self._numbers.append(number)
            place += len(line)
        if not self._places:
            raise LineError(1, "", "the file has no rows")

    def __len__(self) -> int:
        return len(self._places)

    def line(self, index: int) -> bytes:
        """Return the text of a row."""
        self._file.seek(self._places[index])
        return self._file.readline().strip()

    def row(self, index: int) -> Any:
        """Return a row."""
        return read_row(self._numbers[index], self.line(index), self._method)

    def numbers(self, indices: Sequence[int]) -> list[int]:
        """Return the line numbers of rows."""
        return [self._numbers[index] for index in indices]
