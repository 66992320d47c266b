"""Rollouts: the order of a run's tasks, and the group of rollouts of one task.

The run decides when a group starts and how it is used.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic

from tandem.rl.environments.base import Chat, Environment, Task
from tandem.rl.policy_versions import tag_policy_versions
from tandem.rl.tokens.messages import Choice
from tandem.rl.trajectories import Trajectory, TrajectoryGroup

CANCEL_GRACE_S = 5.0
"""Seconds for a rollout past its deadline to clean up."""


class TaskStream(Generic[Task]):
    """An endless stream of tasks: each epoch is a new permutation of all tasks.

    Item i depends only on the number of tasks and the seed, so a run can resume anywhere, and runs can share a stream.
    """

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not len(tasks):
            raise ValueError("A stream needs at least one task, but this split has none.")
        self._tasks, self._seed = tasks, seed
        self._order = lru_cache(maxsize=2)(self._permutation)

    def __getitem__(self, index: int) -> Task:
        if index < 0:
            raise IndexError(f"A stream begins at item 0 and has no end, so it has no item {index}.")
        epoch, place = divmod(index, len(self._tasks))
        return self._tasks[self._order(epoch)[place]]

    def batch(self, index: int, size: int) -> list[Task]:
        """Return items [index * size, (index + 1) * size)."""
        return [self[item] for item in range(index * size, (index + 1) * size)]

    def _permutation(self, epoch: int) -> list[int]:
        order = list(range(len(self._tasks)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order


@dataclass(frozen=True)
class RolloutFailure:
    """A rollout without a trajectory, and the reason."""

    rollout: int
    """Its number in the group, from 0."""
    error: Exception
    """The exception of the rollout; TimeoutError past the deadline."""
    elapsed_s: float

    def __str__(self) -> str:
        return f"rollout {self.rollout} after {self.elapsed_s:.1f} s: {type(self.error).__name__}: {self.error}"


@dataclass(frozen=True)
class RolledOutGroup:
    """The rollouts of one task."""

    group: TrajectoryGroup
    """The trajectories of successful rollouts, tagged with the policy versions that sampled them."""
    failures: tuple[RolloutFailure, ...]


async def roll_out_group(
    chat: Chat, environment: Environment[Task], task: Task, group_size: int, timeout_s: float
) -> RolledOutGroup:
    """Run `group_size` rollouts of one task concurrently.

    A rollout that raises, returns no trainable trajectory or takes longer than `timeout_s` is excluded and reported.
    Cancelling this call cancels its rollouts.
    """
    if group_size < 1:
        raise ValueError(f"A group needs at least one rollout, not {group_size}.")
    results = await asyncio.gather(
        *(_attempt(number, chat, environment, task, timeout_s) for number in range(group_size))
    )
    return RolledOutGroup(
        TrajectoryGroup(trajectories=[result for result in results if isinstance(result, Trajectory)]),
        tuple(result for result in results if isinstance(result, RolloutFailure)),
    )


async def _attempt(
    number: int, chat: Chat, environment: Environment[Task], task: Task, timeout_s: float
) -> Trajectory | RolloutFailure:
    began = time.monotonic()
    rollout = asyncio.ensure_future(environment.rollout(chat, task))
    try:
        done, _ = await asyncio.wait([rollout], timeout=timeout_s)
        if not done:
            raise TimeoutError(f"took longer than the {timeout_s:g} s that a rollout may take")
        return _tagged(_checked(_result(rollout)))
    except Exception as error:  # user code may raise anything
        return RolloutFailure(number, error, time.monotonic() - began)
    finally:
        await _end(rollout)


def _result(rollout: asyncio.Future[Trajectory]) -> Trajectory:
    if rollout.cancelled():
        raise RuntimeError("the rollout cancelled itself")
    return rollout.result()


async def _end(rollout: asyncio.Future[Trajectory]) -> None:
    """Cancel a running rollout and give it a moment to clean up."""
    if not rollout.done():
        rollout.cancel()
        await asyncio.wait([rollout], timeout=CANCEL_GRACE_S)
    if rollout.done() and not rollout.cancelled():
        rollout.exception()  # retrieved, or asyncio logs that it never was


def _checked(trajectory: Trajectory) -> Trajectory:
    """Validate the trajectory again: a rollout may have changed it after construction."""
    if not isinstance(trajectory, Trajectory):
        raise TypeError(
            f"rollout() returned {type(trajectory).__name__}; it must return a tandem.rl.trajectories.Trajectory"
        )
    histories = [dict(history) for history in trajectory.additional_histories]
    trajectory = Trajectory.model_validate({**dict(trajectory), "additional_histories": histories})
    if not any(isinstance(item, Choice) for history in trajectory.histories for item in history.messages_and_choices):
        raise ValueError(
            "rollout() returned a trajectory without a choice, so there is nothing to train; put the choices that "
            "chat() returned into messages_and_choices, unchanged"
        )
    return trajectory


def _tagged(trajectory: Trajectory) -> Trajectory:
    choices = [
        {"policy_version": item.policy_version}
        for history in trajectory.histories
        for item in history.messages_and_choices
        if isinstance(item, Choice)
    ]
    own = {"initial_policy_version": trajectory.initial_policy_version}
    own["final_policy_version"] = trajectory.final_policy_version
    tagged = tag_policy_versions({"messages_and_choices": choices, **own})
    return trajectory.model_copy(update={key: tagged[key] for key in own})
