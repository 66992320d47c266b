"""Groups of rollouts, and the order of tasks."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tandem.rl.environments import rollouts
from tandem.rl.environments.base import Chat, Environment
from tandem.rl.environments.results import ResultError
from tandem.rl.environments.rollouts import RolledOutGroup, TaskStream, roll_out_group
from tandem.rl.trajectories import Trajectory

FIRST_TASKS = [5, 42, 19, 39, 10, 9, 15, 1]
QUESTION = {"role": "user", "content": "hi"}


async def chat(messages: Any, *, tools: Any = None, version: int = 3, **sampling: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "hello"}
    return {"index": 0, "finish_reason": "stop", "message": message, "token_ids": [7], "policy_version": version}


class Programmed(Environment[list[Callable[[Chat], Awaitable[Trajectory]]]]):
    """Rollout n runs the n-th program of its task."""

    def __init__(self) -> None:
        self.count = 0

    def tasks(self, split: str) -> list[Any]:
        return []

    async def rollout(self, chat: Chat, task: list[Callable[[Chat], Awaitable[Trajectory]]]) -> Trajectory:
        self.count += 1
        return await task[self.count - 1](chat)


def roll_out(*programs: Callable[[Chat], Awaitable[Any]], timeout_s: float = 30) -> RolledOutGroup:
    return asyncio.run(roll_out_group(lambda _: chat, Programmed(), list(programs), len(programs), timeout_s))


async def good(chat: Chat) -> Trajectory:
    return Trajectory(messages_and_choices=[QUESTION, await chat([QUESTION])], reward=1.0, metrics={"turns": 1})


async def raises(chat: Chat) -> Trajectory:
    raise RuntimeError("the shop is closed")


async def never_ends(chat: Chat) -> Trajectory:
    await asyncio.Event().wait()
    raise AssertionError


# Groups


def test_a_group_holds_what_succeeded_in_order() -> None:
    async def better(chat: Chat) -> Trajectory:
        await asyncio.sleep(0.05)  # ends after the second rollout, but stays first in the group
        return (await good(chat)).model_copy(update={"reward": 2.0})

    group = roll_out(better, good)
    assert [trajectory.reward for trajectory in group.group.trajectories] == [2.0, 1.0]
    assert group.group.trajectories[1].metrics == {"turns": 1}
    assert group.failures == ()


def test_rollouts_of_a_group_run_at_the_same_time() -> None:
    async def run() -> RolledOutGroup:
        barrier = asyncio.Barrier(4)

        async def meets(chat: Chat) -> Trajectory:
            await barrier.wait()
            return await good(chat)

        return await roll_out_group(lambda _: chat, Programmed(), [meets] * 4, 4, timeout_s=300)

    assert len(asyncio.run(run()).group.trajectories) == 4


def test_a_rollout_that_raises_is_left_out_and_reported() -> None:
    group = roll_out(good, raises, good)
    assert len(group.group.trajectories) == 2
    (failure,) = group.failures
    assert failure.rollout == 1
    assert isinstance(failure.error, RuntimeError)
    assert re.fullmatch(r"rollout 1 after \d+\.\d s: RuntimeError: the shop is closed", str(failure))


def test_a_rollout_past_the_deadline_is_cancelled_and_reported() -> None:
    ended = []

    async def tidy(chat: Chat) -> Trajectory:
        try:
            return await never_ends(chat)
        finally:
            await asyncio.sleep(0.01)
            ended.append("tidied up")

    group = roll_out(tidy, good, timeout_s=0.2)
    assert len(group.group.trajectories) == 1
    (failure,) = group.failures
    assert failure.rollout == 0 and isinstance(failure.error, TimeoutError)
    assert str(failure.error) == "took longer than the 0.2 s that a rollout may take"
    assert 0.2 <= failure.elapsed_s < 30
    assert ended == ["tidied up"]


def test_a_rollout_that_refuses_to_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "CANCEL_GRACE_S", 0.05)
    attempts = []

    async def stubborn(chat: Chat) -> Trajectory:
        while len(attempts) < 2:
            try:
                await never_ends(chat)
            except asyncio.CancelledError:
                attempts.append("ignored")
        return await good(chat)

    group = roll_out(stubborn, timeout_s=0.05)
    assert isinstance(group.failures[0].error, TimeoutError) and not group.group.trajectories
    assert attempts  # it was cancelled


def test_a_rollout_that_cancels_itself_is_a_failure_like_any_other() -> None:
    async def cancels(chat: Chat) -> Trajectory:
        raise asyncio.CancelledError

    group = roll_out(cancels, good)
    assert "the rollout cancelled itself" in str(group.failures[0]) and len(group.group.trajectories) == 1


def test_cancelling_a_group_cancels_its_rollouts() -> None:
    ended = []

    async def noting(chat: Chat) -> Trajectory:
        try:
            return await never_ends(chat)
        finally:
            ended.append("ended")

    async def run() -> None:
        group = asyncio.create_task(roll_out_group(lambda _: chat, Programmed(), [noting] * 3, 3, timeout_s=60))
        await asyncio.sleep(0.05)
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group

    asyncio.run(run())
    assert ended == ["ended"] * 3


def test_choices_may_be_added_after_a_trajectory_was_made() -> None:
    async def appends(chat: Chat) -> Trajectory:
        trajectory = Trajectory(messages_and_choices=[QUESTION])
        trajectory.messages_and_choices.append(await chat([QUESTION]))
        trajectory.reward = 0.5
        return trajectory

    async def sets_nan(chat: Chat) -> Trajectory:
        trajectory = await appends(chat)
        trajectory.reward = float("nan")
        return trajectory

    group = roll_out(appends, sets_nan)
    (trajectory,) = group.group.trajectories
    assert trajectory.reward == 0.5 and trajectory.messages_and_choices[1].token_ids == [7]
    assert isinstance(group.failures[0].error, ResultError) and group.failures[0].error.place == ("reward",)


def test_what_cannot_be_trained_is_a_failure() -> None:
    async def returns_dict(chat: Chat) -> Any:
        return {"messages_and_choices": [QUESTION, await chat([QUESTION])]}

    async def says_nothing(chat: Chat) -> Trajectory:
        return Trajectory(messages_and_choices=[QUESTION, {"role": "assistant", "content": "hello"}], reward=1.0)

    first, second = roll_out(returns_dict, says_nothing).failures
    assert "rollout() returned dict" in str(first)
    assert "without a choice" in str(second)


def test_trajectories_say_which_versions_sampled_them() -> None:
    async def long(chat: Chat) -> Trajectory:
        choices = [await chat([QUESTION], version=version) for version in (4, 5, 5)]
        further = {"messages_and_choices": [QUESTION, await chat([QUESTION], version=6)]}
        return Trajectory(messages_and_choices=[QUESTION, *choices], additional_histories=[further])

    async def tagged(chat: Chat) -> Trajectory:
        return (await good(chat)).model_copy(update={"initial_policy_version": 1})

    async def only_further(chat: Chat) -> Trajectory:
        return Trajectory(additional_histories=[{"messages_and_choices": [QUESTION, await chat([QUESTION])]}])

    async def unknown(chat: Chat) -> Trajectory:
        choice = {**await chat([QUESTION]), "policy_version": None}
        return Trajectory(messages_and_choices=[QUESTION, choice])

    versions = [
        (trajectory.initial_policy_version, trajectory.final_policy_version)
        for trajectory in roll_out(long, tagged, only_further, unknown).group.trajectories
    ]
    assert versions == [(4, 6), (1, 3), (3, 3), (None, None)]


def test_a_group_has_a_rollout() -> None:
    with pytest.raises(ValueError, match="at least one rollout, not 0"):
        roll_out()


# The order of tasks


def test_every_epoch_has_every_task_once_in_an_order_of_its_own() -> None:
    stream = TaskStream("abcdefgh", seed=0)
    epochs = [tuple(stream[index] for index in range(start, start + 8)) for start in (0, 8, 16)]
    assert all(Counter(epoch) == Counter("abcdefgh") for epoch in epochs)
    assert len(set(epochs)) == 3


def test_an_item_depends_on_seed_and_index_alone() -> None:
    tasks = range(100)
    stream, resumed = TaskStream(tasks, seed=5), TaskStream(tasks, seed=5)
    expected = [stream[index] for index in range(350)]
    assert [resumed[index] for index in reversed(range(350))] == expected[::-1]
    assert [TaskStream(tasks, seed=6)[index] for index in range(100)] != expected[:100]
    # Recorded once: a run that resumes under another Python or release continues with the same tasks.
    assert expected[:8] == FIRST_TASKS


def test_batches_follow_one_another() -> None:
    stream = TaskStream(range(10), seed=1)
    assert stream.batch(0, 4) + stream.batch(1, 4) + stream.batch(2, 4) == [stream[index] for index in range(12)]


def test_tasks_are_made_when_they_are_asked_for() -> None:
    made: list[int] = []

    class Lazy:
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> int:
            made.append(index)
            return index

    assert TaskStream(Lazy(), seed=0).batch(3, 5) == made
    assert len(made) == 5


def test_a_stream_needs_tasks_and_has_no_end_to_count_from() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        TaskStream([], seed=0)
    with pytest.raises(IndexError, match="no item -1"):
        TaskStream([1], seed=0)[-1]
