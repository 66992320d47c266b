"""The rows of training files, one format for each method.

supervised      {"messages": [...], "tools"?: [...], "parallel_tool_calls"?: true}
dpo             {"input": {"messages": [...], "tools"?: [...]}, "preferred_output": [message],
                     "non_preferred_output": [message]}
reinforcement   {"messages": [...], "tools"?: [...], and any fields that the grader refers to}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, BinaryIO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.rl.tokens.messages import Tool
from tandem.serve.finetuning.data.lines import LineError, lines

_MEMBER = re.compile(r"[\[(]|^constrained-|^(str|text|parts)$")


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Part):
    type: Literal["text"]
    text: str


class FunctionCall(Part):
    name: str
    arguments: str
    """JSON."""


class ToolCall(Part):
    id: str
    type: Literal["function"]
    function: FunctionCall


class Message(Part):
    """A turn. Text only, like the models of this service."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    weight: Literal[0, 1] | None = None
    """Of an assistant's message: 0 trains nothing of it. Default: 1."""

    @model_validator(mode="after")
    def _has_the_fields_of_its_role(self) -> Self:
        if self.role != "assistant":
            for name in ("tool_calls", "weight", "reasoning_content"):
                if getattr(self, name) is not None:
                    raise ValueError(f"only messages of the assistant have {name}")
            if self.content is None:
                raise ValueError(f"a message of role {self.role!r} needs content")
        elif self.content is None and self.tool_calls is None:
            raise ValueError("a message of the assistant needs content or tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id belongs to messages of role 'tool', which need it")
        return self

    @property
    def sent(self) -> dict[str, Any]:
        """Return the message for a chat template."""
        return self.model_dump(exclude_none=True, exclude={"weight"})


Messages = Annotated[list[Message], Field(min_length=1)]
Tools = Annotated[list[Tool], Field(max_length=1000)]


class SupervisedRow(Part):
    messages: Messages
    tools: Tools | None = None
    parallel_tool_calls: bool | None = None
    """Says how the calls came about. It changes no token, so it is read and has no effect."""

    @model_validator(mode="after")
    def _has_something_to_train(self) -> Self:
        if not any(message.role == "assistant" and message.weight != 0 for message in self.messages):
            raise ValueError("messages needs one of role 'assistant' whose weight isn't 0")
        return self


class DpoInput(Part):
    messages: Messages
    tools: Tools | None = None
    parallel_tool_calls: bool | None = None


class DpoRow(Part):
    input: DpoInput
    preferred_output: Annotated[list[Message], Field(min_length=1, max_length=1)]
    non_preferred_output: Annotated[list[Message], Field(min_length=1, max_length=1)]

    @model_validator(mode="after")
    def _compares_two_answers(self) -> Self:
        for name in ("preferred_output", "non_preferred_output"):
            message = getattr(self, name)[0]
            if message.role != "assistant" or message.weight is not None:
                raise ValueError(f"{name} must be one message of role 'assistant', without weight")
        if self.input.messages[-1].role == "assistant":
            raise ValueError("input.messages must not end with a message of the assistant, which is what is compared")
        if self.preferred_output == self.non_preferred_output:
            raise ValueError("preferred_output and non_preferred_output are the same")
        return self


class ReinforcementRow(BaseModel):
    """The whole row is the `item` of graders' templates."""

    model_config = ConfigDict(extra="allow", strict=True)

    messages: Messages
    tools: Tools | None = None

    @model_validator(mode="after")
    def _asks_for_an_answer(self) -> Self:
        if self.messages[-1].role == "assistant":
            raise ValueError("messages must not end with a message of the assistant, because the model answers next")
        return self


Row = SupervisedRow | DpoRow | ReinforcementRow
FORMATS: dict[str, type[SupervisedRow] | type[DpoRow] | type[ReinforcementRow]] = {
    "supervised": SupervisedRow,
    "dpo": DpoRow,
    "reinforcement": ReinforcementRow,
}


def read_rows(file: BinaryIO, method: str) -> Iterator[tuple[int, Any]]:
    """Yield number and row of each line. Raise LineError for one that isn't a row of this method."""
    for number, line in lines(file):
        yield number, read_row(number, line, method)


def read_row(number: int, line: bytes, method: str) -> Any:
    """Return the row on a line. Raise LineError."""
    try:
        return FORMATS[method].model_validate_json(line)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"] if not (isinstance(part, str) and _MEMBER.search(part)))
    if fault["type"] == "json_invalid":
        raise LineError(number, "", "isn't JSON in UTF-8")
    reason = {"missing": "is missing", "extra_forbidden": "isn't known here; leave it out"}.get(fault["type"])
    raise LineError(number, place, reason or fault["msg"].removeprefix("Value error, ").replace("Input should", "must"))
