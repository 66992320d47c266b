"""The interface of environments, and the chat that they act with.

An environment is one class. `SingleTurnEnvironment` needs three short methods:

    class Capitals(SingleTurnEnvironment[tuple[str, str]]):
        def tasks(self, split: Split) -> Sequence[tuple[str, str]]:
            return [("France", "Paris"), ("Japan", "Tokyo")] if split == "train" else [("Kenya", "Nairobi")]

        def messages(self, task: tuple[str, str]) -> list[Message]:
            return [{"role": "user", "content": f"What is the capital of {task[0]}?"}]

        def reward(self, task: tuple[str, str], answer: str | None) -> float:
            return float(answer is not None and task[1] in answer)

Agents with several turns, tools or conversations implement `Environment.rollout` instead.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from tandem.rl.trajectories import Trajectory

Message = Mapping[str, Any]
"""A message in OpenAI's format, or a choice that a chat returned."""
Tool = Mapping[str, Any]
"""A tool in OpenAI's format: {"type": "function", "function": {"name": ..., "parameters": ...}}."""
Split = Literal["train", "eval"]
Task = TypeVar("Task")


class Chat(Protocol):
    """Calls the model. Calls may run concurrently."""

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        """Return the model's next turn: an OpenAI choice with the service's additions.

        Put the choice into the trajectory unchanged: it carries the sampled token ids, their logprobs and the policy
        version, so that exactly the sampled tokens are trained.

        Args:
            messages: the conversation so far, with earlier turns of the model as choices; `request_messages` converts
                them for an API.
            tools: tools that the model may call.
            sampling: overrides the run's sampling options, like temperature, max_tokens, stop or tool_choice.
        """
        ...


class CapturedRollout(Protocol):
    """What a capture records: the exchanges of one rollout (`tandem.client.Rollout`)."""

    def trajectory(self) -> dict[str, Any]:
        """Return the exchanges as the fields of a trajectory."""
        ...


@runtime_checkable
class ServiceChat(Chat, Protocol):
    """A chat of `tandem train`, for agents that call the model themselves, with any SDK or framework.

    with chat.capture() as rollout:
        answer = await agent(base_url=str(chat.client.base_url), api_key=chat.client.api_key, model=chat.model)
    return Trajectory.model_validate({**rollout.trajectory(), "reward": grade(answer)})
    """

    client: Any
    """An AsyncOpenAI of the service."""
    model: str
    """The name of the model, or of the version, that the rollout samples from."""

    @property
    def http(self) -> Any:
        """The httpx.AsyncClient below `client`, which retries as long as the run's patience lasts."""
        ...

    def rollout_sampling(self) -> dict[str, Any]:
        """Return the run's sampling options, with this rollout's seed if they have one."""
        ...

    def capture(self) -> AbstractContextManager[CapturedRollout]:
        """Record the calls of this context (`tandem.client.capture`)."""
        ...

    def new_rollout(self) -> CapturedRollout:
        """Return an empty rollout, for calls from elsewhere than this context."""
        ...

    def recorded_http(self, rollout_of: Callable[[Any], Any]) -> Any:
        """Let `http` record each request into the rollout that `rollout_of` returns for it, and return `http`."""
        ...


class Environment(ABC, Generic[Task]):
    """Tasks of one kind, and an agent's rollout on one of them. Rollouts run concurrently in one event loop.

    The keyword arguments of the constructor are the environment's options, set by a run's `options`.
    """

    @abstractmethod
    def tasks(self, split: Split) -> Sequence[Task]:
        """Return the tasks of a split: finite, always in the same order, with none in both splits.

        Called once per run. A procedural environment returns a sequence that creates item i on demand.
        """

    @abstractmethod
    async def rollout(self, chat: ServiceChat, task: Task) -> Trajectory:
        """Act on one task, and return the conversation with its reward and any metrics.

        Put choices and tools into the trajectory as they were used, and further conversations into
        `additional_histories`; or the exchanges of a capture. A rollout that raises or exceeds the deadline is excluded
        from its group and reported. Don't block the event loop: run slow work with `asyncio.to_thread`.
        """

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Hold what all rollouts share, like a server, while a run rolls out. Default: nothing."""
        yield


class SingleTurnEnvironment(Environment[Task]):
    """One answer per task.

    Args:
        system_prompt: precedes the messages of every task.
        sampling: overrides the run's sampling options, like {"max_tokens": 64}.
    """

    def __init__(self, system_prompt: str | None = None, sampling: Mapping[str, Any] | None = None) -> None:
        self.system_prompt = system_prompt
        self.sampling = dict(sampling or {})

    @abstractmethod
    def messages(self, task: Task) -> list[Message]:
        """Return the messages for the model, without the system prompt."""

    @abstractmethod
    def reward(self, task: Task, answer: str | None) -> float | Awaitable[float]:
        """Return the reward of an answer's text, None if it has none. May be `async`, to ask a judge."""

    def metrics(self, task: Task, answer: str | None) -> dict[str, float]:
        """Return more metrics of an answer; they are reported, not trained."""
        return {}

    async def rollout(self, chat: Chat, task: Task) -> Trajectory:
        messages = opening(self.system_prompt, self.messages(task))
        choice = await chat(messages, **self.sampling)
        answer = choice["message"].get("content")
        reward = self.reward(task, answer)
        if inspect.isawaitable(reward):
            reward = await reward
        return Trajectory(messages_and_choices=[*messages, choice], reward=reward, metrics=self.metrics(task, answer))


def opening(system_prompt: str | None, messages: Sequence[Message]) -> list[Message]:
    """Return a new list of the system prompt, if any, and the messages."""
    return [*([{"role": "system", "content": system_prompt}] if system_prompt else []), *messages]


def request_messages(conversation: Sequence[Message]) -> list[dict[str, Any]]:
    """Return a conversation for a request: each choice becomes its assistant message."""
    return [_said(item["message"]) if "finish_reason" in item else dict(item) for item in conversation]


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return an assistant message without empty keys, some of which a request must not have."""
    said = {key: value for key, value in message.items() if value is not None and value != []}
    return said if "tool_calls" in said else {"content": "", **said}
