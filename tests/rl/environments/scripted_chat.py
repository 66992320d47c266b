"""A chat with scripted answers, which records its requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tandem.rl.environments.base import Message, Tool


def turn(content: str | None, *calls: dict[str, Any], version: int = 3) -> dict[str, Any]:
    """Return a choice as the service does, with a single token."""
    message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": list(calls)}
    return {
        "index": 0,
        "finish_reason": "tool_calls" if calls else "stop",
        "message": message,
        "logprobs": {"content": [{"token": "token_id:7", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
        "token_ids": [7],
        "prompt_token_ids": [1, 2, 3],
        "policy_version": version,
    }


def call(name: str, arguments: dict[str, Any] | str, id_: str = "call_0") -> dict[str, Any]:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": written}}


class ScriptedChat:
    """Returns the given turns in order. A text stands for a turn with this content."""

    def __init__(self, *turns: dict[str, Any] | str | None) -> None:
        self.turns = [one if isinstance(one, dict) else turn(one) for one in turns]
        self.asked: list[list[Message]] = []
        self.tools: Sequence[Tool] | None = None
        self.sampling: dict[str, Any] = {}

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        self.asked.append(list(messages))
        self.tools, self.sampling = tools, sampling
        return self.turns[len(self.asked) - 1]
