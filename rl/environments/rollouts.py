"""Rollouts: the order of a run's tasks, and the group of rollouts of one task.

The run decides when a group starts and how it is used.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Generic

from tandem.rl.environments.base import Environment, Task
from tandem.rl.environments.results import CheckedResult, checked_result
from tandem.rl.environments.turns import turns_of
from tandem.rl.policy_versions import tag_policy_versions
from tandem.rl.trajectories import TrajectoryGroup

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
        return self._tasks[self.task_index(index)]

    def task_index(self, index: int) -> int:
        """Return the place of item `index` among the tasks."""
        if index < 0:
            raise IndexError(f"A stream begins at item 0 and has no end, so it has no item {index}.")
        epoch, place = divmod(index, len(self._tasks))
        return self._order(epoch)[place]

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
    error: BaseException
    """The exception of the rollout; TimeoutError past the deadline, ResultError for a result that can't be used."""
    elapsed_s: float

    def __str__(self) -> str:
        return f"rollout {self.rollout} after {self.elapsed_s:.1f} s: {self.cause}"

    @property
    def cause(self) -> str:
        """The error's class and text in one line."""
        try:
            text = " ".join(str(self.error).split())
        except Exception as error:  # the text of user code's own exceptions
            text = f"(its text can't be shown: {type(error).__name__})"
        name = type(self.error).__name__
        return f"{name}: {text}" if text else name


@dataclass(frozen=True)
class RolledOutGroup:
    """The rollouts of one task."""

    group: TrajectoryGroup
    """The trajectories of successful rollouts, tagged with the policy versions that sampled them."""
    failures: tuple[RolloutFailure, ...]
    dropped_metrics: tuple[str, ...] = ()
    """Names of the environment's metrics that weren't finite, once per rollout."""


async def roll_out_group(
    chat_of: Callable[[int], Any], environment: Environment[Task], task: Task, group_size: int, timeout_s: float
) -> RolledOutGroup:
    """Run `group_size` rollouts of one task concurrently; `chat_of` returns the chat of each, by its number.

    A rollout that raises, returns something that can't be posted and trained, or takes longer than `timeout_s` is
    excluded and reported. Cancelling this call cancels its rollouts.
    """
    if group_size < 1:
        raise ValueError(f"A group needs at least one rollout, not {group_size}.")
    results = await asyncio.gather(
        *(_attempt(number, chat_of, environment, task, timeout_s) for number in range(group_size))
    )
    checked = [result for result in results if isinstance(result, CheckedResult)]
    return RolledOutGroup(
        TrajectoryGroup(trajectories=[result.trajectory for result in checked]),
        tuple(result for result in results if isinstance(result, RolloutFailure)),
        tuple(name for result in checked for name in result.dropped_metrics),
    )


async def _attempt(
    number: int, chat_of: Callable[[int], Any], environment: Environment[Task], task: Task, timeout_s: float
) -> CheckedResult | RolloutFailure:
    began = time.monotonic()
    chat = chat_of(number)
    rollout = asyncio.ensure_future(_contained(environment, chat, task))
    error: BaseException | None = None
    try:
        done, _ = await asyncio.wait([rollout], timeout=timeout_s)
        if not done:
            raise TimeoutError(f"took longer than the {timeout_s:g} s that a rollout may take")
        outcome = rollout.result()
        if not isinstance(outcome, _Raised):
            return _tagged(checked_result(outcome, getattr(chat, "model", None)))
        error = outcome.error
    except Exception as raised:
        error = raised
    finally:
        await _end(rollout)
    return RolloutFailure(number, error, time.monotonic() - began)


@dataclass(frozen=True)
class _Raised:
    error: BaseException


async def _contained(environment: Environment[Task], chat: Any, task: Task) -> object:
    """Return what the rollout returns or raises.

    User code may raise anything. In a task, SystemExit and KeyboardInterrupt would end the event loop. Ctrl-C arrives
    as a signal instead.
    """
    try:
        return await environment.rollout(chat, task)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return _Raised(RuntimeError("the rollout cancelled itself"))
    except BaseException as error:
        return _Raised(error)


async def _end(rollout: asyncio.Future[object]) -> None:
    """Cancel a running rollout and give it a moment to clean up."""
    if not rollout.done():
        rollout.cancel()
        await asyncio.wait([rollout], timeout=CANCEL_GRACE_S)
    if rollout.done() and not rollout.cancelled():
        rollout.exception()  # retrieved, or asyncio logs that it never was


def _tagged(result: CheckedResult) -> CheckedResult:
    trajectory = result.trajectory
    choices = [{"policy_version": turn.policy_version} for turn in turns_of(trajectory)]
    own = {"initial_policy_version": trajectory.initial_policy_version}
    own["final_policy_version"] = trajectory.final_policy_version
    tagged = tag_policy_versions({"messages_and_choices": choices, **own})
    return replace(result, trajectory=trajectory.model_copy(update={key: tagged[key] for key in own}))
