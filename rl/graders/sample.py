"""A model's answer, as templates and grader programs see it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sample:
    """One answer of a model."""

    output_text: str
    """Its text, empty if it has none."""
    output_tools: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """Its tool calls, in the format of chat completions."""
    choices: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """The choices of the completion that it comes from."""

    @classmethod
    def of_choice(cls, choice: Mapping[str, Any]) -> Sample:
        """Return the answer of a choice of a chat completion."""
        message = choice["message"]
        shown = {"index": 0, "finish_reason": choice.get("finish_reason"), "message": dict(message)}
        return cls(message.get("content") or "", list(message.get("tool_calls") or ()), [shown])

    @property
    def output_json(self) -> Any:
        """Return the text as JSON, None if it isn't JSON."""
        try:
            return json.loads(self.output_text)
        except ValueError:
            return None

    def namespace(self) -> dict[str, Any]:
        """Return the fields by name."""
        return {
            "output_text": self.output_text,
            "output_json": self.output_json,
            "output_tools": list(self.output_tools),
            "choices": list(self.choices),
        }
