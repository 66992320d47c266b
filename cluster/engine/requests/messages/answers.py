"""Adds to answers of Anthropic's Messages what training needs. Importing this module imports no vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json, to_json

from tandem.cluster.engine.requests.chat.answers import Annotator
from tandem.cluster.engine.requests.generations import Generation
from tandem.cluster.engine.requests.training_fields import (
    LOGPROBS,
    POLICY_VERSION,
    PROMPT_TOKEN_IDS,
    SAMPLED_WITH,
    TOKEN_IDS,
)

if TYPE_CHECKING:
    from pydantic import BaseModel


@dataclass(frozen=True)
class MessagesAnnotator(Annotator):
    """Writes version, requested name and generation into messages, whole or as server-sent events."""

    def response(self, response: BaseModel) -> bytes:
        answer = response.model_dump(exclude_none=True)
        if answer.get("type") == "message":  # and not a count of tokens
            answer = {"stop_reason": None, "stop_sequence": None} | answer | self._started() | self._sampled()
        return to_json(answer)

    async def stream(self, parts: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
        """Yield vLLM's server-sent events, annotated."""
        async with aclosing(parts):
            async for part in parts:
                yield self._event(part)

    def events(self, events: bytes) -> bytes:
        return events  # `stream` has annotated them

    def _event(self, text: str) -> bytes:
        name, _, data = text.partition("\ndata: ")
        if name not in ("event: message_start", "event: message_delta", "event: error"):
            return text.encode()
        event = from_json(data)
        if name == "event: message_start":
            event["message"] |= self._started()
        elif name == "event: message_delta":
            event |= self._sampled()
        else:
            message = str(event["error"]["message"]).replace(self.engine_name, self.requested_name)
            event["error"] = {"type": "api_error", "message": message}
        return name.encode() + b"\ndata: " + to_json(event) + b"\n\n"

    def _started(self) -> dict[str, Any]:
        return {
            "model": self.requested_name,
            PROMPT_TOKEN_IDS: self._generation.prompt_token_ids,
            POLICY_VERSION: self.step,
            SAMPLED_WITH: self.sampled_with,
        }

    def _sampled(self) -> dict[str, Any]:
        return {TOKEN_IDS: self._generation.token_ids, LOGPROBS: self._generation.logprobs}

    @property
    def _generation(self) -> Generation:
        (generation,) = self.generations
        return generation
