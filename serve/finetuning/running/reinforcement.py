"""The method `reinforcement`: the service rolls out the rows itself, and trains on the graded answers.

For each batch of rows, the newest version answers each row several times, the grader rewards the answers, and a
training job makes the next version. So training is strictly on-policy. A batch is rolled out before its training job is
accepted: a runner that takes over finds the training job, or rolls the batch out again, and nothing is trained twice.
(`tandem train` keeps batches on a disk of its own and lets rollouts run ahead; here the store is the only record.)
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import from_json

from tandem.rl.config import TrainingConfig
from tandem.rl.environments.base import Chat, Environment, Split
from tandem.rl.environments.rollouts import RolledOutGroup, roll_out_group
from tandem.rl.graders.grading import Grading
from tandem.rl.graders.rollout import graded_rollout
from tandem.rl.graders.spec import Grader
from tandem.rl.trajectories import Trajectory, TrajectoryGroup
from tandem.serve.finetuning.completions import OwnCompletions
from tandem.serve.finetuning.data.epochs import batches, epoch_order
from tandem.serve.finetuning.data.row_file import RowFile
from tandem.serve.finetuning.data.settings import group_size
from tandem.serve.finetuning.graders import grading
from tandem.serve.finetuning.running.answers import VersionChat
from tandem.serve.finetuning.running.context import JobContext
from tandem.serve.finetuning.running.supervision import JobFailedError
from tandem.serve.finetuning.store.claims import Note

T = TypeVar("T")
MAX_AT_ONCE = 256
"""Rollouts that run at the same time."""
MAX_FAILED_FRACTION = 0.5
CHECK_S = 0.5
GRADER_S = 300.0
"""For the grades of an answer, beside the deadline of a completion."""


class GradedTasks(Environment[dict[str, Any]]):
    """Rows of a file, each a task of one answer."""

    def __init__(self, grading: Grading, sampling: dict[str, Any]):
        self._grading, self._sampling = grading, sampling

    def tasks(self, split: Split) -> Sequence[dict[str, Any]]:
        raise NotImplementedError("the job reads the rows that it needs")

    async def rollout(self, chat: Chat, task: dict[str, Any]) -> Trajectory:
        return await graded_rollout(chat, task, self._grading, **self._sampling)


@dataclass(frozen=True)
class _Rewards:
    """The grades of many answers."""

    groups: Sequence[RolledOutGroup]

    @property
    def rewards(self) -> list[float]:
        return [trajectory.reward for group in self.groups for trajectory in group.group.trajectories]

    def failures(self) -> list[str]:
        """Return causes of rollouts that failed, the most frequent first."""
        causes = Counter(failure.cause for group in self.groups for failure in group.failures)
        return [f"{count} x {cause}" for cause, count in causes.most_common(3)]


class ReinforcementTuning:
    """One claimed job of this method."""

    def __init__(self, context: JobContext, rows: RowFile, validation: RowFile | None):
        self._context, self._rows, self._validation = context, rows, validation
        method = context.method["reinforcement"]
        self._numbers = method["hyperparameters"]
        self._grader: Grader = TypeAdapter(Grader).validate_python(method["grader"])
        self._sampling = {"response_format": method["response_format"]} if "response_format" in method else {}
        self._size = group_size(self._numbers["compute_multiplier"])
        rate = context.base.optimizer.learning_rate * self._numbers["learning_rate_multiplier"]
        self._training = TrainingConfig(learning_rate=rate)

    def run(self) -> None:
        """Train on all batches. Raises JobFailedError, and what `Supervision.wait` raises."""
        of_rows = batches(len(self._rows), self._numbers["batch_size"], self._numbers["n_epochs"])
        claims, job = self._context.claims, self._context.job
        claims.running(job)
        with asyncio.Runner() as loop:
            self._completions = OwnCompletions(self._context.completion_services(), job.entity, job_id=job.id)
            self._evaluate(loop, 0, is_last=False)
            for index, place in enumerate(of_rows):
                training = self._context.training_job(index)
                if training is None:
                    groups = self._roll_out(loop, index, *place)
                    training = self._context.accept_groups(index, groups, self._training)
                self._context.following.follow(index, training)
                self._evaluate(loop, index + 1, is_last=index + 1 == len(of_rows))

    def _roll_out(self, loop: asyncio.Runner, index: int, epoch: int, begin: int, end: int) -> list[TrajectoryGroup]:
        """Return the graded answers to a batch. Raises JobFailedError if too many rollouts fail."""
        rows = [self._rows.line(row) for row in epoch_order(len(self._rows), self._context.job.seed, epoch)[begin:end]]
        graded = _Rewards(loop.run(self._watched(self._groups(rows, self._size, f"train/{index}"))))
        wanted, there = len(rows) * self._size, len(graded.rewards)
        if wanted - there > MAX_FAILED_FRACTION * wanted:
            raise JobFailedError(
                f"{wanted - there} of the {wanted} answers of batch {index} couldn't be graded: "
                + "; ".join(graded.failures()),
                "grading_failed",
                "method.reinforcement.grader",
            )
        notes = [Note(f"Batch {index}: mean reward {fmean(graded.rewards):.4g} of {there} answers")]
        if there < wanted:
            causes = "; ".join(graded.failures())
            notes.append(Note(f"{wanted - there} of the {wanted} answers of batch {index} failed: {causes}", "warn"))
        self._context.claims.show(self._context.job, f"batch-{index}", 1, notes)
        return [group.group for group in graded.groups if group.group.trajectories]

    def _evaluate(self, loop: asyncio.Runner, num_trained: int, is_last: bool) -> None:
        """Show the mean reward of the validation file after so many batches, if it is due and isn't shown yet."""
        if self._validation is None or not (is_last or num_trained % self._numbers["eval_interval"] == 0):
            return
        part = f"evaluation-{num_trained}"
        if self._context.claims.num_shown(self._context.job, part):
            return
        rows = [self._validation.line(row) for row in range(len(self._validation))]
        name = f"eval/{num_trained}"
        graded = _Rewards(loop.run(self._watched(self._groups(rows, self._numbers["eval_samples"], name))))
        if not graded.rewards:
            raise JobFailedError(
                f"No answer to the validation file could be graded: {'; '.join(graded.failures())}",
                "grading_failed",
                "validation_file",
            )
        mean = fmean(graded.rewards)
        metrics = {"step": num_trained, "valid_mean_reward": mean, "num_answers": len(graded.rewards)}
        note = Note(f"Evaluation after {num_trained} batches: mean reward {mean:.4g}", metrics=metrics)
        self._context.claims.show(self._context.job, part, 1, [note])

    async def _groups(self, rows: Sequence[bytes], size: int, name: str) -> list[RolledOutGroup]:
        """Return a group of graded answers to each row, from the newest version. `name` decides their seeds."""
        job, config = self._context.job, self._context.config
        graded = grading(self._grader, self._completions, job.entity, config)
        environment = GradedTasks(graded, self._sampling)
        model, room = self._context.newest_version(), asyncio.Semaphore(max(1, MAX_AT_ONCE // size))
        deadlines = config.deadlines
        timeout_s = deadlines.start_engine_s + deadlines.inference_s + GRADER_S

        async def group(place: int, row: bytes) -> RolledOutGroup:
            def chat(number: int) -> VersionChat:
                seed = random.Random(f"{job.seed}/{name}/{place}/{number}").getrandbits(31)
                return VersionChat(self._completions, model, seed, deadlines.start_engine_s)

            async with room:
                return await roll_out_group(chat, environment, from_json(row), size, timeout_s)

        return list(await asyncio.gather(*(group(place, row) for place, row in enumerate(rows))))

    async def _watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of `work`. Cancel it when the job has to stop, and raise what `Supervision.wait` raises."""
        task = asyncio.create_task(work)
        try:
            while not (await asyncio.wait([task], timeout=CHECK_S))[0]:
                self._context.supervision.wait(0)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
