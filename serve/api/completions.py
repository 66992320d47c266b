"""The bodies of completion requests and answers, on their way to vLLM's OpenAI layer and back."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

# What OpenAI's wire shapes have for a logprob that JSON can't write; vLLM floors minus infinity at it too.
NOT_FINITE_LOGPROB = -9999.0
_EVENT_END = b"\n\n"


def fill_in_defaults(body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    """Asks for what training needs, where the client hasn't said otherwise. Null is how clients say nothing."""
    filled = dict(body)
    if filled.get("logprobs") is None:
        filled["logprobs"] = True if is_chat else 0
    if is_chat and filled["logprobs"] is True and filled.get("top_logprobs") is None:
        filled["top_logprobs"] = 0
    if filled.get("return_token_ids") is None:
        filled["return_token_ids"] = True
    return filled


@dataclass(frozen=True)
class Annotator:
    """Writes into an answer which version made it, in the words of the request.

    Clients keep unknown keys of a Choice but not of the answer around it, so what training needs goes on every Choice:
    `policy_version` and the ids of the prompt.
    """

    requested_name: str
    engine_name: str
    step: int

    def body(self, content: bytes) -> bytes:
        """A whole answer, or an error, as JSON. What isn't JSON passes unchanged."""
        answer = read_object(content)
        if answer is None:
            return content
        if isinstance(answer.get("error"), dict):
            message = str(answer["error"].get("message"))
            answer["error"]["message"] = message.replace(self.engine_name, self.requested_name)
        if isinstance(answer.get("choices"), list):
            answer["model"] = self.requested_name
            answer["policy_version"] = self.step
            for choice in answer["choices"]:
                choice["policy_version"] = self.step
                if answer.get("prompt_token_ids") is not None:
                    choice.setdefault("prompt_token_ids", answer["prompt_token_ids"])
        return to_json(answer)

    def event(self, event: bytes) -> bytes:
        """One server-sent event, without its empty line."""
        lines = [
            b"data: " + self.body(line.removeprefix(b"data:").strip()) if line.startswith(b"data:") else line
            for line in event.split(b"\n")
        ]
        return b"\n".join(lines)

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """A stream of server-sent events, however its chunks are cut."""
        buffer = b""
        async for chunk in chunks:
            *complete, buffer = (buffer + chunk).split(_EVENT_END)
            if complete:
                yield b"".join(self.event(event) + _EVENT_END for event in complete)
        if buffer:
            yield self.event(buffer)


def read_object(content: bytes) -> dict[str, Any] | None:
    """A JSON object without NaN and infinities; None when it isn't one."""
    try:
        if b"NaN" in content or b"Infinity" in content:
            value = json.loads(content, parse_constant=lambda _: NOT_FINITE_LOGPROB)
        else:
            value = from_json(content)  # with to_json a third of json's time, and answers with logprobs are long
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def error_events(error: dict[str, Any]) -> bytes:
    """How a stream that has begun says that it failed: OpenAI clients raise on it."""
    return b"data: " + to_json(error) + b"\n\ndata: [DONE]\n\n"
