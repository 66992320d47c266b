"""The service's chat completions, as rollouts call them."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING, Any, cast

import httpx
from openai import AsyncOpenAI

from tandem.client import Rollout, capture, recorded
from tandem.rl.environments.base import Message, Tool, request_messages
from tandem.runs.seeds import adjacent, given_seed, turn_seed

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

GATHERING_S = 0.005
"""How long a request waits for equal ones: the rollouts of a group start at the same moment."""
GREEDY_BELOW = 1e-5
"""Below this temperature, vLLM doesn't sample."""


class OpenAIChat:
    """The chats of a model's rollouts, over one OpenAI client.

    Equal turns that are requested at the same moment, like the first ones of a group's rollouts, can share one request
    for several choices: the service then reads, routes and answers once, and the engine computes the prompt once. Each
    turn gets its choice when the longest choice has ended.
    """

    def __init__(self, client: AsyncOpenAI, model: str, max_shared: int = 1, **sampling: Any):
        """
        Args:
            max_shared: the most turns of one request; 1: each turn has its own.
            sampling: fields of every request; fields that the OpenAI client doesn't know are sent unchanged.
        """
        self.client, self.model, self.sampling, self.max_shared = client, model, sampling, max_shared
        self._open: dict[str, _SharedRequest] = {}
        self._numbers = itertools.count()

    def of_rollout(self, group: str, number: int) -> RolloutChat:
        """Return the chat of a rollout. `group` names its group within the run, the same whenever it is rolled out."""
        return RolloutChat(self, group, number)

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        """Return a turn outside of any group: the first turn of a rollout of its own."""
        return await self.of_rollout("", next(self._numbers))(messages, tools=tools, **sampling)

    async def choice(self, conversation: list[dict[str, Any]], body: dict[str, Any], number: int) -> dict[str, Any]:
        """Return the choice of rollout `number`. Rollouts that pass the same seed get choices of different seeds."""
        if self.max_shared == 1 or not _can_be_shared(body):
            return (await self._choices(conversation, body, number, 1))[0]
        body_key = json.dumps([conversation, body], sort_keys=True)
        request = self._open.get(body_key)
        if request is None:
            request = self._open[body_key] = _SharedRequest()
            request.choices = asyncio.create_task(self._shared(body_key, request, conversation, body))
        place = len(request.numbers)
        request.numbers.append(number)
        if len(request.numbers) == self.max_shared:
            self._close(body_key, request)
        request.num_waiting += 1
        try:
            # Shielded: if this rollout is cancelled, the others still get their turns.
            return (await asyncio.shield(request.choices))[place]
        finally:
            request.num_waiting -= 1
            if not request.num_waiting:
                self._close(body_key, request)
                request.choices.cancel()

    async def _shared(
        self, body_key: str, request: _SharedRequest, conversation: list[dict[str, Any]], body: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return a choice for each turn that has joined, in their order."""
        with suppress(TimeoutError):  # not wait_for: until Python 3.12 it may swallow a cancellation
            async with asyncio.timeout(GATHERING_S):
                await request.is_closed.wait()
        self._close(body_key, request)
        if given_seed(body) is None:
            return await self._choices(conversation, body, 0, len(request.numbers))
        # vLLM gives the choices of a request with seed s the seeds s, s + 1, s + 2, ...
        ranges = adjacent(request.numbers)
        answers = await asyncio.gather(*(self._choices(conversation, body, r.start, len(r)) for r in ranges))
        by_number = {
            number: choice
            for numbers, choices in zip(ranges, answers, strict=True)
            for number, choice in zip(numbers, choices, strict=True)
        }
        return [by_number[number] for number in request.numbers]

    def _close(self, body_key: str, request: _SharedRequest) -> None:
        """Let no more turns join a request."""
        request.is_closed.set()
        if self._open.get(body_key) is request:
            del self._open[body_key]

    async def _choices(
        self, conversation: list[dict[str, Any]], body: dict[str, Any], first: int, size: int
    ) -> list[dict[str, Any]]:
        """Return the choices of the rollouts from number `first` on."""
        messages = cast("list[ChatCompletionMessageParam]", conversation)
        if (seed := given_seed(body)) is not None:
            body = {**body, "seed": seed + first}
        if size > 1:
            body = {**body, "n": size}
        completion = await self.client.chat.completions.create(model=self.model, messages=messages, extra_body=body)
        return [choice.model_dump() for choice in completion.choices]


class RolloutChat:
    """`tandem.rl.environments.base.ServiceChat` of one rollout.

    Agent code that needs an OpenAI client uses `chat.client` and `chat.model`, and puts `choice.model_dump()` into the
    trajectory; that equals the choices that `chat(...)` returns. Agents of frameworks run inside `chat.capture()`.
    """

    def __init__(self, chat: OpenAIChat, group: str, number: int):
        self.client, self.model, self.sampling = chat.client, chat.model, chat.sampling
        self._chat, self._group, self._number = chat, group, number
        self._num_turns = 0

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        body = {**self.sampling, **sampling}
        if (seed := given_seed(body)) is not None:
            body["seed"] = turn_seed(seed, self._group, self._num_turns)
        self._num_turns += 1
        if tools:
            body["tools"] = list(tools)
        return await self._chat.choice(request_messages(messages), body, self._number)

    @property
    def http(self) -> httpx.AsyncClient:
        return self.client._client

    def rollout_sampling(self) -> dict[str, Any]:
        sampling = dict(self.sampling)
        if (seed := given_seed(sampling)) is not None:
            sampling["seed"] = turn_seed(seed, self._group, 0) + self._number
        return sampling

    def capture(self) -> AbstractContextManager[Rollout]:
        return capture()

    def new_rollout(self) -> Rollout:
        return Rollout()

    def recorded_http(self, rollout_of: Callable[[Any], Any]) -> httpx.AsyncClient:
        return recorded(self.http, rollout_of)


class _SharedRequest:
    """A request that equal turns may join until it is closed."""

    choices: asyncio.Task[list[dict[str, Any]]]

    def __init__(self) -> None:
        self.numbers: list[int] = []
        """The rollouts that have joined."""
        self.num_waiting = 0
        self.is_closed = asyncio.Event()


def _can_be_shared(body: dict[str, Any]) -> bool:
    """Return False for a greedy request, because vLLM then rejects several choices, and for one with its own n."""
    temperature = body.get("temperature")
    return "n" not in body and (temperature is None or temperature >= GREEDY_BELOW)
