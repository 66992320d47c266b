"""Rows of supervised data: one conversation each, with the tools that it may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tandem.rl.errors import RLError
from tandem.rl.tokens.messages import Message, Tool

IGNORED = "response_format"
"""A key that other services read. The template renders nothing of it, so it doesn't change what is trained."""


class SupervisedRow(BaseModel):
    """One line of supervised data. Unknown keys don't train and are reported."""

    model_config = ConfigDict(extra="allow")

    messages: list[Message] = Field(min_length=1)
    """In order. An assistant message with `weight` 0 is only context."""
    tools: list[Tool] | None = None
    """The tools that the chat template shows to the model."""
    chat_template_kwargs: dict[str, Any] | None = None
    """More arguments of the chat template."""

    def ignored_fields(self) -> Iterator[str]:
        """Iterate over the unknown keys that have a value."""
        for name, value in (self.model_extra or {}).items():
            if value not in (None, [], {}):
                yield name


class RowError(RLError, ValueError):
    """A row that can't be trained exactly.

    Attributes:
        line: its line in the data, from 1; blank lines count.
        reason: what is wrong and what to do.
        field: the faulty part, like ("messages", 3); () for all of it.
    """

    def __init__(self, line: int, reason: str, field: tuple[str | int, ...] = ()) -> None:
        super().__init__(line, reason, field)
        self.line, self.reason, self.field = line, reason, field

    def __str__(self) -> str:
        where = f", {'.'.join(map(str, self.field))}" if self.field else ""
        return f"line {self.line}{where}: {self.reason}"
