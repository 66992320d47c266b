"""What rollouts act with: the service's chat completions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from openai import AsyncOpenAI

from tandem.rl.environments.base import Message, Tool, request_messages

GATHERING_S = 0.005
"""How long a request waits for equal ones: the rollouts of a group begin in the same moment."""
GREEDY_BELOW = 1e-5
"""The temperature below which vLLM doesn't sample."""


class OpenAIChat:
    """`tandem.rl.environments.base.Chat` over an OpenAI client.

    Turns that are asked for in the same moment and in the same words, as the first ones of a group's rollouts are, can
    share one request for several choices: the service then reads, routes and answers once, and the engine computes
    the prompt once. Whoever shares gets its choice when the longest has ended.

    Agent code that wants a client of its own takes `chat.client` and `chat.model`; choices that it puts into the
    trajectory as `choice.model_dump()` are as good as those that `chat(...)` returns.
    """

    def __init__(self, client: AsyncOpenAI, model: str, max_shared: int = 1, **sampling: Any):
        """
        Args:
            max_shared: the most turns of one request; 1: each has its own.
            sampling: fields of every request; those that the OpenAI client doesn't know are sent as they are.
        """
        self.client, self.model, self.sampling, self.max_shared = client, model, sampling, max_shared
        self._open: dict[str, _SharedRequest] = {}

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        body = {**self.sampling, **sampling}
        if tools:
            body["tools"] = list(tools)
        conversation = request_messages(messages)
        if self.max_shared == 1 or not _can_be_shared(body):
            return (await self._choices(conversation, body))[0]
        words = json.dumps([conversation, body], sort_keys=True)
        request = self._open.get(words)
        if request is None:
            request = self._open[words] = _SharedRequest()
            request.choices = asyncio.create_task(self._shared(words, request, conversation, body))
        place = request.size
        request.size += 1
        if request.size == self.max_shared:
            self._close(words, request)
        request.num_waiting += 1
        try:
            # Shielded: the others' turns go on when this rollout is cancelled.
            return (await asyncio.shield(request.choices))[place]
        finally:
            request.num_waiting -= 1
            if not request.num_waiting:
                self._close(words, request)
                request.choices.cancel()

    async def _shared(
        self, words: str, request: _SharedRequest, conversation: list[dict[str, Any]], body: dict[str, Any]
    ) -> list[dict[str, Any]]:
        with suppress(TimeoutError):  # not wait_for: until Python 3.12 it may swallow a cancellation
            async with asyncio.timeout(GATHERING_S):
                await request.is_closed.wait()
        self._close(words, request)
        return await self._choices(conversation, {**body, "n": request.size} if request.size > 1 else body)

    def _close(self, words: str, request: _SharedRequest) -> None:
        """Nobody joins it any more."""
        request.is_closed.set()
        if self._open.get(words) is request:
            del self._open[words]

    async def _choices(self, conversation: list[dict[str, Any]], body: dict[str, Any]) -> list[dict[str, Any]]:
        completion = await self.client.chat.completions.create(model=self.model, messages=conversation, extra_body=body)
        return [choice.model_dump() for choice in completion.choices]


class _SharedRequest:
    """A request that others may join until it is closed."""

    choices: asyncio.Task[list[dict[str, Any]]]

    def __init__(self) -> None:
        self.size = 0
        self.num_waiting = 0
        self.is_closed = asyncio.Event()


def _can_be_shared(body: dict[str, Any]) -> bool:
    """vLLM refuses several choices of one request when it doesn't sample."""
    temperature = body.get("temperature")
    return "n" not in body and (temperature is None or temperature >= GREEDY_BELOW)
