"""Adds to answers of OpenAI's Responses what training needs. Importing this module imports no vLLM."""

from __future__ import annotations

import importlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_core import to_json

from tandem.cluster.engine.requests.chat.answers import Annotator
from tandem.cluster.engine.requests.training_fields import (
    GENERATIONS,
    LOGPROB,
    OUTPUT_INDICES,
    OUTPUT_TOKENS,
    POLICY_VERSION,
    PROMPT_TOKEN_IDS,
    SAMPLED_WITH,
    TOKEN_ID,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResponsesAnnotator(Annotator):
    """Writes version, requested name and generations into responses, whole or as server-sent events."""

    def response(self, response: BaseModel) -> bytes:
        return to_json(self._annotated(response.model_dump(mode="json", by_alias=True)))

    async def stream(self, parts: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
        """Yield vLLM's events as server-sent events. An error after the first of them becomes the last one."""
        num_sent = 0
        try:
            async with aclosing(parts):
                async for part in parts:
                    yield self._event(part)
                    num_sent += 1
        except Exception as error:
            logger.warning("A stream of a response failed: %s", error)
            yield error_event(num_sent, self._reason(error))

    def events(self, events: bytes) -> bytes:
        return events  # `stream` has annotated them

    def _event(self, event: BaseModel) -> bytes:
        dumped = event.model_dump(mode="json", by_alias=True)
        if isinstance(dumped.get("response"), dict):
            dumped["response"] = self._annotated(dumped["response"])
        return b"event: " + str(dumped["type"]).encode() + b"\ndata: " + to_json(dumped) + b"\n\n"

    def _annotated(self, response: dict[str, Any]) -> dict[str, Any]:
        # Nothing is stored, whatever the request says: `store` is true by default in OpenAI's clients.
        response |= {"model": self.requested_name, "store": False, POLICY_VERSION: self.step}
        if response["status"] in ("completed", "incomplete"):
            response[GENERATIONS] = self._generations(len(response["output"]))
        return response

    def _generations(self, num_items: int) -> list[dict[str, Any]]:
        """Return the response's generations. The last one made the items, as the service has no tools of its own."""
        last = len(self.generations) - 1
        return [
            {
                PROMPT_TOKEN_IDS: generation.prompt_token_ids,
                OUTPUT_INDICES: list(range(num_items)) if index == last else [],
                OUTPUT_TOKENS: [
                    {TOKEN_ID: token, LOGPROB: logprob}
                    for token, logprob in zip(generation.token_ids, generation.logprobs, strict=True)
                ],
                POLICY_VERSION: self.step,
                SAMPLED_WITH: self.sampled_with,
            }
            for index, generation in enumerate(self.generations)
        ]

    def _reason(self, error: Exception) -> str:
        """Return the sentence for an error, as vLLM's answer without a stream would have it."""
        responses: Any = importlib.import_module("vllm.entrypoints.serve.exception_handling.error_response")
        message: str = _unwritten(error) or responses.create_error_response(error).error.message
        return message.replace(self.engine_name, self.requested_name)


def _unwritten(error: Exception) -> str | None:
    """Return the message of an error that vLLM tried to write as an event, which fails; None for another error."""
    for fault in error.errors(include_url=False) if isinstance(error, ValidationError) else ():
        unwritten = fault["input"].get("error") if isinstance(fault["input"], dict) else None
        if isinstance(unwritten, dict):
            return str(unwritten.get("message"))
    return None


def error_event(number: int, message: str, code: str = "server_error") -> bytes:
    """Return the event of an error. OpenAI's clients raise on its `error`; the protocol has the fields beside it."""
    error = {"message": message, "type": "server_error", "code": code, "param": None}
    event = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": number}
    return b"event: error\ndata: " + to_json(event | {"error": error}) + b"\n\n"
