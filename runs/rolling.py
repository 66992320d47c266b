"""Rollouts for training: groups in the order of the task stream, as early as the bound on policy lag allows."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import fmean
from typing import Any

import httpx
import openai

from tandem.client import JudgeError
from tandem.rl.environments.base import Environment
from tandem.rl.environments.rollouts import RolledOutGroup, RolloutFailure, TaskStream, roll_out_group
from tandem.runs.chat import OpenAIChat
from tandem.runs.config import TaskConfig
from tandem.runs.directory import RunDirectory
from tandem.runs.errors import RolloutsFailedError
from tandem.runs.judging import GroupJudge
from tandem.runs.patience import Patience
from tandem.runs.recording import Recorder, described
from tandem.runs.reporting.metrics import causes, oldest_versions, rollout_metrics
from tandem.runs.reporting.notices import Notices
from tandem.runs.reporting.report import Report
from tandem.runs.reporting.stopwatch import Stopwatch
from tandem.runs.versions import VersionWatch

GROUP_ATTEMPTS = 3
ATTEMPT_PAUSE_S = 1.0


class GroupRoller:
    """Rolls out one group and lets the judge score it, and repeats both if too few of its rollouts succeed."""

    def __init__(
        self, environment: Environment[Any], patience: Patience, report: Report, judge: GroupJudge | None = None
    ):
        self._environment, self._patience, self._report, self._judge = environment, patience, report, judge

    async def __call__(
        self, chat: OpenAIChat, task: object, size: int, timeout_s: float, name: str, label: str
    ) -> RolledOutGroup:
        """Return the group. `name` selects its seeds, and `label` names it in reports.

        Raise ServiceAwayError if the service stays away."""
        needed, attempt = min(size, 2), 1
        while True:
            troubles_before = self._patience.num_troubles
            chat_of = partial(chat.of_rollout, f"{name}/{attempt}")
            group = await roll_out_group(chat_of, self._environment, task, size, timeout_s)
            if self._judge is not None:
                group = await self._judge(group, label)
            if self._patience.given_up:
                raise self._patience.given_up
            if len(group.group.trajectories) >= needed:
                return group
            # Trouble of the service isn't the group's fault; Patience limits it.
            had_trouble = self._patience.num_troubles > troubles_before
            if not (had_trouble and all(map(_is_of_service, group.failures))):
                attempt += 1
            if attempt > GROUP_ATTEMPTS:
                return group
            self._report.say(
                f"{label} is rolled out again, because too few of its rollouts succeeded: {causes([group])}"
            )
            await asyncio.sleep(ATTEMPT_PAUSE_S)


@dataclass
class _Batch:
    """A batch that is being rolled out."""

    index: int
    num_groups: int
    waited_s: float
    """Seconds of waiting for the version that the batch needs."""
    began: float = field(default_factory=time.monotonic)
    groups: dict[int, RolledOutGroup] = field(default_factory=dict)


class BatchRoller:
    """Rolls out the batches of a run in order and stores each in the run's directory.

    Batch b, tasks [b * G, (b + 1) * G) of the stream, is trained on version start + b. Its groups start once version
    start + b - max_policy_lag exists. The model's name is answered by the newest version at the time of a request, so
    no older version samples a turn, and at most max_policy_lag + 1 batches are in progress.
    """

    def __init__(
        self,
        task: TaskConfig,
        directory: RunDirectory,
        versions: VersionWatch,
        roller: GroupRoller,
        chat: OpenAIChat,
        stream: TaskStream[Any],
        training: Stopwatch,
        report: Report,
        recorder: Recorder,
    ):
        self._recorder = recorder
        self._task, self._directory, self._versions, self._report = task, directory, versions, report
        self._roll_out, self._chat, self._stream, self._training = roller, chat, stream, training
        self._notices = Notices(task.environment.class_, report)
        rollouts = task.rollouts
        self._room = asyncio.Semaphore(max(1, rollouts.concurrency // rollouts.group_size))
        self._stored: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)

    async def stored(self, index: int) -> None:
        """Wait until the batch is stored in the run's directory."""
        await self._stored[index].wait()

    async def run(self, first_batch: int) -> None:
        """Roll out all batches from this one on, except those that an earlier process stored."""
        start, num_groups = self._directory.model.start_version, self._task.rollouts.groups_per_job
        async with asyncio.TaskGroup() as groups:
            for index in range(first_batch, self._task.training.jobs):
                if self._directory.has_batch(index):
                    self._stored[index].set()
                    continue
                asked = time.monotonic()
                await self._versions.at_least(start + index - self._task.training.max_policy_lag)
                batch = _Batch(index, num_groups, waited_s=time.monotonic() - asked)
                progress = self._report.progress
                progress.rolling_batch, progress.num_groups, progress.num_groups_done = index, num_groups, 0
                for place in range(num_groups):
                    await self._room.acquire()
                    groups.create_task(self._group(batch, place))

    async def _group(self, batch: _Batch, place: int) -> None:
        settings = self._task.rollouts
        try:
            task = self._stream[batch.index * batch.num_groups + place]
            label = f"Group {place} of batch {batch.index}"
            name = f"train/{batch.index}/{place}"
            group = await self._roll_out(self._chat, task, settings.group_size, settings.timeout_s, name, label)
        finally:
            self._room.release()
        batch.groups[place] = group
        if self._report.progress.rolling_batch == batch.index:
            self._report.progress.num_groups_done = len(batch.groups)
        if len(batch.groups) == batch.num_groups:
            await self._store(batch)

    async def _store(self, batch: _Batch) -> None:
        ended = time.monotonic()
        groups = [batch.groups[place] for place in range(batch.num_groups)]
        settings = self._task.rollouts
        self._notices.of_batch(f"batch {batch.index}", groups)
        check_failures(groups, settings.group_size, settings.max_failed_fraction, f"batch {batch.index}")
        trained_on = self._directory.model.start_version + batch.index
        versions = oldest_versions(groups)
        metrics = rollout_metrics(groups) | {
            "policy_lag/mean": trained_on - fmean(versions),
            "policy_lag/max": trained_on - min(versions),
            "seconds/rollouts": ended - batch.began,
            "seconds/rollouts_beside_training": self._training.overlap(batch.began, ended),
            "seconds/waiting_for_version": batch.waited_s,
        }
        about: dict[str, str | int] = {"split": "train", "batch": batch.index, "seed": self._task.seed}
        first = batch.index * batch.num_groups
        shown = [
            described(group, about | {"task": self._stream.task_index(first + place)})
            for place, group in enumerate(groups)
        ]
        trajectories = [group for group in shown if group.trajectories]
        await asyncio.to_thread(self._directory.store_batch, batch.index, trajectories, metrics, min(versions))
        self._stored[batch.index].set()
        if self._task.output.send_rollouts:
            self._recorder.offer("train", [group for group in shown if not group.trajectories])


def check_failures(groups: Sequence[RolledOutGroup], group_size: int, max_fraction: float, label: str) -> None:
    """Raise RolloutsFailedError if a larger fraction of the rollouts failed, or all of them."""
    wanted = group_size * len(groups)
    there = sum(len(group.group.trajectories) for group in groups)
    if there == 0 or (wanted - there) / wanted > max_fraction:
        raise RolloutsFailedError(
            f"{wanted - there} of the {wanted} rollouts of {label} failed, but max_failed_fraction is "
            f"{max_fraction:g}: {causes(groups)}. Fix the cause; the same command resumes from the last version."
        )


def _is_of_service(failure: RolloutFailure) -> bool:
    error = failure.error.__cause__ if isinstance(failure.error, JudgeError) else failure.error
    return isinstance(error, TimeoutError | openai.APIConnectionError | httpx.TransportError)
