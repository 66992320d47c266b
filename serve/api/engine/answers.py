"""Adds to completion requests and responses what training needs: logprobs, token ids, the policy version."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json, to_json

# Replaces NaN and infinite logprobs, which JSON can't hold; vLLM uses it for minus infinity too.
NOT_FINITE_LOGPROB = -9999.0
_EVENT_END = b"\n\n"


def fill_in_defaults(body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    """Return the request with logprobs and token ids on, unless the client set these fields. Null means unset."""
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
    """Writes the policy version into a response, and the requested name in place of the engine's.

    Clients keep unknown keys of a Choice but not of the response around it, so `policy_version`, the token ids of the
    prompt and `sampled_with` are added to every Choice.
    """

    requested_name: str
    engine_name: str
    step: int
    sampled_with: Mapping[str, Any]
    """The options of the request that changed the distribution (see `sampling`)."""

    def body(self, content: bytes) -> bytes:
        """Annotate a whole response, or an error. Anything but a JSON object is returned unchanged."""
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
                choice["sampled_with"] = self.sampled_with
                if answer.get("prompt_token_ids") is not None:
                    choice.setdefault("prompt_token_ids", answer["prompt_token_ids"])
        return to_json(answer)

    def event(self, event: bytes) -> bytes:
        """Annotate one server-sent event, without its empty line."""
        lines = [
            b"data: " + self.body(line.removeprefix(b"data:").strip()) if line.startswith(b"data:") else line
            for line in event.split(b"\n")
        ]
        return b"\n".join(lines)

    async def events(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        """Annotate a stream of server-sent events, whose chunks may end anywhere."""
        buffer = b""
        async for chunk in chunks:
            *complete, buffer = (buffer + chunk).split(_EVENT_END)
            if complete:
                yield b"".join(self.event(event) + _EVENT_END for event in complete)
        if buffer:
            yield self.event(buffer)


def read_object(content: bytes) -> dict[str, Any] | None:
    """Parse a JSON object, with NaN and infinities replaced; None for anything else."""
    try:
        if b"NaN" in content or b"Infinity" in content:
            value = json.loads(content, parse_constant=lambda _: NOT_FINITE_LOGPROB)
        else:
            value = from_json(content)  # three times as fast as json, and responses with logprobs are long
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def error_events(error: dict[str, Any]) -> bytes:
    """Return the last events of a stream that fails after its start; OpenAI clients raise on them."""
    return b"data: " + to_json(error) + b"\n\ndata: [DONE]\n\n"
