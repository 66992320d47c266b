"""Adds to answers of chat and text completions what training needs: logprobs, token ids, the policy version.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from tandem.cluster.engine.requests.chat.policy_spans import PolicySpans
from tandem.cluster.engine.requests.generations import NOT_FINITE_LOGPROB, Generation
from tandem.cluster.engine.versions.adapter_names import adapter_digest

if TYPE_CHECKING:
    from pydantic import BaseModel

_EVENT_END = b"\n\n"


@dataclass(frozen=True)
class Annotator:
    """Writes the policy version into a response, and the requested name in place of the engine's.

    Clients keep unknown keys of a Choice but not of the response around it, so `policy_version`, the token ids of the
    prompt, `sampled_with` and `policy_token_spans` are added to every Choice.
    """

    requested_name: str
    engine_name: str
    step: int
    sampled_with: Mapping[str, Any]
    """The options of the request that changed the distribution (see `requests.sampling`)."""
    generations: list[Generation] = field(default_factory=list)
    """Those of this request so far, in protocols whose answers don't have them."""

    def response(self, response: BaseModel) -> bytes:
        """Return vLLM's whole response as annotated JSON."""
        answer = response.model_dump()
        self._annotate(answer)
        for choice in answer.get("choices") or ():
            self._spans.whole(choice)
        content = to_json(answer, inf_nan_mode="constants")
        return to_json(read_object(content)) if _has_constants(content) else content

    def stream(self, parts: AsyncGenerator[str, None]) -> AsyncIterator[str | bytes]:
        """Yield vLLM's server-sent events; `events` annotates them when they are sent."""
        return parts

    def body(self, content: bytes) -> bytes:
        """Annotate JSON of a part of a stream, or of an error. Anything but an object is returned unchanged."""
        answer = read_object(content)
        if answer is None:
            return content
        self._annotate(answer)
        for choice in answer.get("choices") or ():
            if choice.get("prompt_token_ids", ...) is None:  # only the first part has them; a null would replace them
                del choice["prompt_token_ids"]
            self._spans.part(answer, choice)
        return to_json(answer)

    @cached_property
    def _spans(self) -> PolicySpans:
        return PolicySpans(adapter_digest(self.engine_name), self.requested_name, self.step)

    def _annotate(self, answer: dict[str, Any]) -> None:
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

    def event(self, event: bytes) -> bytes:
        """Annotate one server-sent event, without its empty line."""
        lines = [
            b"data: " + self.body(line.removeprefix(b"data:").strip()) if line.startswith(b"data:") else line
            for line in event.split(b"\n")
        ]
        return b"\n".join(lines)

    def events(self, events: bytes) -> bytes:
        """Annotate whole server-sent events."""
        return b"".join(self.event(event) + _EVENT_END for event in events.split(_EVENT_END) if event)


def read_object(content: bytes) -> dict[str, Any] | None:
    """Parse a JSON object, with NaN and infinities replaced; None for anything else."""
    try:
        if _has_constants(content):
            value = json.loads(content, parse_constant=lambda _: NOT_FINITE_LOGPROB)
        else:
            value = from_json(content)  # three times as fast as json, and responses with logprobs are long
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _has_constants(content: bytes) -> bool:
    return b"NaN" in content or b"Infinity" in content
