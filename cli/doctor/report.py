"""The lines of a report: each check is OK with a finding, or a fault with what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.text import Text

from tandem.runs.reporting.console import PlainConsole

OK, FAULT = "OK ", "FIX"


class FaultError(Exception):
    """A check found something to change. The message says what is wrong, and what to do."""


@dataclass(frozen=True)
class Line:
    is_ok: bool
    name: str
    text: str


class Report:
    """Prints each line as soon as its check has ended. A check that fails in any way is a line, never a traceback."""

    def __init__(self, out: PlainConsole):
        self._out = out
        self.lines: list[Line] = []

    @property
    def is_ok(self) -> bool:
        return all(line.is_ok for line in self.lines)

    def check(self, name: str, find: Callable[[], str]) -> bool:
        """Run a check, which returns its finding or raises. Return whether it passed."""
        try:
            line = Line(True, name, find())
        except Exception as error:  # whatever a library raises on a broken machine
            line = Line(False, name, str(error) if _is_ours(error) else f"{type(error).__name__}: {error}")
        self.lines.append(line)
        style = "green" if line.is_ok else "red"
        first, *rest = line.text.strip().splitlines() or [""]
        self._out.print(Text.assemble((OK if line.is_ok else FAULT, style), f" {name}: {first}"))
        for text in rest:
            self._out.print(f"      {text.strip()}")
        return line.is_ok


def _is_ours(error: Exception) -> bool:
    """Return whether the message of an error is a sentence for users."""
    return isinstance(error, FaultError) or type(error).__module__.startswith("tandem.")
