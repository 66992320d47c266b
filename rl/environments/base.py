"""What an environment is, and the one thing that it is given to act with: a chat.

A user's own environment is one class. `SingleTurnEnvironment` asks for two short methods:

    class Capitals(SingleTurnEnvironment[tuple[str, str]]):
        def tasks(self, split: Split) -> Sequence[tuple[str, str]]:
            return [("France", "Paris"), ("Japan", "Tokyo")] if split == "train" else [("Kenya", "Nairobi")]

        def messages(self, task: tuple[str, str]) -> list[Message]:
            return [{"role": "user", "content": f"What is the capital of {task[0]}?"}]

        def reward(self, task: tuple[str, str], answer: str | None) -> float:
            return float(answer is not None and task[1] in answer)

Agents of several turns, with tools or with several conversations, write `Environment.rollout` themselves.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar

from tandem.rl.trajectories import Trajectory

Message = Mapping[str, Any]
"""A message in OpenAI's format, or a choice as a chat returned it."""
Tool = Mapping[str, Any]
"""A tool in OpenAI's format: {"type": "function", "function": {"name": ..., "parameters": ...}}."""
Split = Literal["train", "eval"]
Task = TypeVar("Task")


class Chat(Protocol):
    """One call of the model. Calls may run at the same time."""

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        """The model's next turn: an OpenAI choice with all that the service put on it.

        The choice goes into the trajectory as it came, because it carries the sampled token ids, their logprobs and
        the policy version; only then are the tokens that are trained the tokens that were sampled.

        Args:
            messages: the conversation so far. Earlier turns of the model stand in it as the choices that they were;
                `request_messages` turns them into what an API takes.
            tools: what the model may call.
            sampling: overrides what the run samples with, like temperature, max_tokens, stop or tool_choice.
        """
        ...


class Environment(ABC, Generic[Task]):
    """Tasks of one kind, and an agent's rollout on one of them. Rollouts run at the same time, in one event loop.

    Its constructor's keyword arguments are its options: a run's `options` are handed to it by name.
    """

    @abstractmethod
    def tasks(self, split: Split) -> Sequence[Task]:
        """The tasks of a split: finite, in the same order each time, and none of `train` in `eval`.

        Called once per run. A procedural environment returns a sequence that makes item i when it is asked for.
        """

    @abstractmethod
    async def rollout(self, chat: Chat, task: Task) -> Trajectory:
        """Act on one task, and return what was said with its reward, and with any metrics to report.

        Choices and tools stand in the trajectory as they were used; further conversations go into
        `additional_histories`. What it raises, and what runs past the deadline, is left out of the group and
        reported. It mustn't block: work that takes long belongs into `asyncio.to_thread`.
        """


class SingleTurnEnvironment(Environment[Task]):
    """One answer per task.

    Args:
        system_prompt: stands before the messages of every task.
        sampling: overrides what the run samples with, like {"max_tokens": 64}.
    """

    def __init__(self, system_prompt: str | None = None, sampling: Mapping[str, Any] | None = None) -> None:
        self.system_prompt = system_prompt
        self.sampling = dict(sampling or {})

    @abstractmethod
    def messages(self, task: Task) -> list[Message]:
        """What the model is asked, without the system prompt."""

    @abstractmethod
    def reward(self, task: Task, answer: str | None) -> float | Awaitable[float]:
        """What the text of the answer is worth; None when the model gave none. May be `async`, to ask a judge."""

    def metrics(self, task: Task, answer: str | None) -> dict[str, float]:
        """More numbers to report about an answer; they don't train."""
        return {}

    async def rollout(self, chat: Chat, task: Task) -> Trajectory:
        messages = opening(self.system_prompt, self.messages(task))
        choice = await chat(messages, **self.sampling)
        answer = choice["message"].get("content")
        reward = self.reward(task, answer)
        if inspect.isawaitable(reward):
            reward = await reward
        return Trajectory(
            messages_and_choices=[*messages, choice], reward=float(reward), metrics=self.metrics(task, answer)
        )


def opening(system_prompt: str | None, messages: Sequence[Message]) -> list[Message]:
    """A new list of messages, after the system prompt where there is one."""
    return [*([{"role": "system", "content": system_prompt}] if system_prompt else []), *messages]


def request_messages(conversation: Sequence[Message]) -> list[dict[str, Any]]:
    """A conversation as a request takes it: each choice becomes the assistant message that it holds."""
    return [_said(item["message"]) if "finish_reason" in item else dict(item) for item in conversation]


def _said(message: Mapping[str, Any]) -> dict[str, Any]:
    """An assistant message without the keys that a response leaves empty, some of which a request mustn't have."""
    said = {key: value for key, value in message.items() if value is not None and value != []}
    return said if "tool_calls" in said else {"content": "", **said}
