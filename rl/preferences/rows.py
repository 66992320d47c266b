"""Rows of preference data: a conversation, the answer that is preferred, and another one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tandem.rl.supervised.rows import SupervisedRow
from tandem.rl.tokens.messages import Message, Tool


class PreferenceInput(BaseModel):
    """What both answers follow."""

    model_config = ConfigDict(extra="forbid")

    messages: list[Message] = Field(min_length=1)
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    """More arguments of the chat template."""


class PreferenceRow(BaseModel):
    """One line of preference data."""

    model_config = ConfigDict(extra="forbid")

    input: PreferenceInput
    preferred_output: list[Message] = Field(min_length=1, max_length=1)
    non_preferred_output: list[Message] = Field(min_length=1, max_length=1)

    def sides(self) -> tuple[SupervisedRow, SupervisedRow]:
        """Return the conversation with the preferred answer, and with the other one."""
        preferred, other = (
            SupervisedRow.model_construct(
                messages=[*self.input.messages, *output],
                tools=self.input.tools,
                chat_template_kwargs=self.input.chat_template_kwargs,
            )
            for output in (self.preferred_output, self.non_preferred_output)
        )
        return preferred, other
