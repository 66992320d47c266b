"""A console that prints text as it is: brackets, colons and control characters of others change nothing.

Paths, names and error texts come from users, models and libraries. Rich would take `[/INST]` for markup and `:smile:`
for an emoji, and a terminal would obey an escape sequence. Style comes from `style=` or `rich.text.Text` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

# C0 and C1 controls except line breaks; marks that reverse or separate lines; surrogates, which no encoding has.
_UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_WIDEST = 100_000


def printable(text: str) -> str:
    """Return the text with its control characters written as escapes, like \\x1b. Line breaks stay, tabs are spaces."""
    return _UNPRINTABLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return "    " if match[0] == "\t" else match[0].encode("unicode_escape").decode()


class PlainConsole(Console):
    """Prints strings, also those in tables, without interpreting them. Lines of text are never broken."""

    def __init__(self, **options: Any):
        super().__init__(**options, markup=False, emoji=False, highlight=False)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print strings and Text in whole lines, so that ids and paths in them can be copied."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(each, str | Text) for each in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)

    def error(self, sentence: str, advice: str = "") -> None:
        """Print an error in red, and the advice after it without color."""
        self._colored("red", sentence, advice)

    def warning(self, sentence: str, advice: str = "") -> None:
        self._colored("yellow", sentence, advice)

    def _colored(self, color: str, sentence: str, advice: str) -> None:
        rest = f" {printable(advice)}" if advice else ""
        self.print(Text.assemble((printable(sentence), color), rest))  # Text would drop control characters

    def rows(self, columns: Sequence[str], rows: Iterable[Sequence[str]], whole: Iterable[str] = ()) -> None:
        """Print a table. Cells of the columns in `whole`, like ids, are never cut or broken.

        A terminal that is too narrow for these gets one field per line; a file or a pipe gets whole lines.
        """
        kept = list(map(list, rows))
        ids = set(whole)
        table = Table(*(Column(name, no_wrap=name in ids, overflow="fold") for name in columns))
        for row in kept:
            table.add_row(*row)
        size = Measurement.get(self, self.options.update(max_width=_WIDEST), table)
        if self.is_terminal and size.minimum > self.width:
            for row in kept:
                self.print("\n".join(f"{name}: {cell}" for name, cell in zip(columns, row, strict=True) if cell) + "\n")
            return
        with self._width_of(self.width if self.is_terminal else max(size.maximum, 1)):
            super().print(table, crop=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the control characters of texts; the console's own control codes are apart from text."""
        for segment in super().render(renderable, options):
            if segment.control or not _UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)

    def render_str(self, text: str, **options: Any) -> Text:  # type: ignore[override]  # the rest is passed through
        return super().render_str(printable(text), **options)

    @contextmanager
    def _width_of(self, width: int) -> Iterator[None]:
        before = self._width
        self._width = width
        try:
            yield
        finally:
            self._width = before
