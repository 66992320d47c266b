"""Environments with numbered tasks, so that tests can check the order."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tandem.rl.environments.base import Chat, Environment, SingleTurnEnvironment
from tandem.rl.trajectories import Trajectory


class Numbered(SingleTurnEnvironment[int]):
    """The reward is the number of the version that answered, read from the answer."""

    def __init__(self, num: int = 10):
        super().__init__()
        self._num = num

    def tasks(self, split: str) -> Sequence[int]:
        return range(self._num) if split == "train" else range(100, 103)

    def messages(self, task: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": f"task {task}"}]

    def reward(self, task: int, answer: str | None) -> float:
        return float(answer.split()[1].rstrip(","))


class TwoTurns(Numbered):
    """Two turns, between which a new version may appear."""

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        conversation = self.messages(task)
        for turn in range(2):
            conversation = [*conversation, await chat(conversation), {"role": "user", "content": f"again {turn}"}]
        return Trajectory(messages_and_choices=conversation[:-1], reward=float(task % 2))


class BadTasks(Numbered):
    """Has tasks that aren't a sequence, or raises."""

    def __init__(self, fault: str):
        super().__init__()
        self._fault = fault

    def tasks(self, split: str):
        return {"generator": (n for n in range(3)), "nothing": None, "empty": []}[self._fault]


class Seeded(Numbered):
    """Passes a seed to the chat, the same for all rollouts."""

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        choice = await chat(self.messages(task), seed=5)
        return Trajectory(messages_and_choices=[*self.messages(task), choice], reward=1.0)


class Failing(Numbered):
    """Fails on some tasks, always or the first few times."""

    def __init__(self, tasks: Sequence[int] = (), times: int = 10**9, slow: bool = False, late: bool = False):
        super().__init__()
        self._left = {task: times for task in tasks}
        self._slow, self._late = slow, late

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        if self._left.get(task, 0) > 0:
            self._left[task] -= 1
            if self._slow:
                await asyncio.sleep(60)
            if self._late:
                await super().rollout(chat, task)
            raise ZeroDivisionError(f"task {task} divides by zero")
        return await super().rollout(chat, task)


class Faulty(Numbered):
    """Returns a bad value on the tasks that are multiples of three."""

    def __init__(self, fault: str):
        super().__init__()
        self._fault = fault

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        trajectory = await super().rollout(chat, task)
        if task % 3 == 0:
            match self._fault:
                case "nan metric":
                    trajectory.metrics["accuracy"] = math.nan
                case "surrogate":
                    trajectory.logs.append("caf\udce9")
                case "numpy":
                    trajectory.score = np.float32(0.5)
                case "exit":
                    sys.exit(7)
                case "interrupt":
                    raise KeyboardInterrupt
                case "nothing":
                    return None
        return trajectory


class Forgetful(Numbered):
    """Puts choices without the service's additional fields into the trajectory."""

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        choice = await chat(self.messages(task))
        kept = {name: choice[name] for name in ("index", "finish_reason", "message")}
        return Trajectory(messages_and_choices=[*self.messages(task), kept], reward=float(time.time() % 2))


class Stubborn(Numbered):
    """Rollouts that swallow their cancellation and then block in a thread."""

    def __init__(self, begun: str):
        super().__init__()
        self._begun = Path(begun)

    async def rollout(self, chat: Chat, task: int) -> Trajectory:
        try:
            self._begun.touch()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.to_thread(time.sleep, 3600)


class NotComplete(Environment):
    pass
