"""Evaluation beside training: rollouts on the eval split, each evaluation on one version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from openai import AsyncOpenAI

from tandem.rl.environments.rollouts import RolledOutGroup
from tandem.runs.chat import OpenAIChat
from tandem.runs.config import EvaluationConfig, TaskConfig
from tandem.runs.directory import RunDirectory
from tandem.runs.ledger import Row
from tandem.runs.recording import Recorder, described
from tandem.runs.reporting.metrics import rollout_metrics
from tandem.runs.reporting.notices import Notices
from tandem.runs.reporting.report import Report
from tandem.runs.rolling import GroupRoller, check_failures
from tandem.runs.versions import VersionWatch


def versions_to_evaluate(every: int, start: int, jobs: int) -> list[int]:
    """Return the first version, then each `every`-th, and the last."""
    return sorted({*range(start, start + jobs + 1, every), start + jobs})


class Evaluator:
    """Evaluates the due versions in order as they appear, and writes each result into the ledger."""

    def __init__(
        self,
        task: TaskConfig,
        settings: EvaluationConfig,
        directory: RunDirectory,
        openai: AsyncOpenAI,
        versions: VersionWatch,
        roller: GroupRoller,
        tasks: Sequence[object],
        report: Report,
        recorder: Recorder,
    ):
        self._recorder = recorder
        self._task, self._settings, self._directory, self._openai = task, settings, directory, openai
        self._versions, self._roll_out, self._report = versions, roller, report
        self._notices = Notices(task.environment.class_, report)
        self._tasks = [tasks[index] for index in range(min(settings.tasks or len(tasks), len(tasks)))]

    async def run(self) -> None:
        start = self._directory.model.start_version
        for version in versions_to_evaluate(self._settings.every, start, self._task.training.jobs):
            if self._directory.ledger.has("evaluation", version):
                continue
            await self._versions.at_least(version)
            self._report.progress.evaluating = version
            row, groups = await self._evaluate(version)
            self._report.progress.evaluating = None
            self._directory.ledger.append(row)
            self._report.row(row)
            if self._task.output.send_rollouts:
                about: dict[str, str | int] = {"split": "eval", "version": version, "seed": self._task.seed}
                described_groups = [
                    described(group, about | {"task": place}, version) for place, group in enumerate(groups)
                ]
                self._recorder.offer("eval", described_groups)

    async def _evaluate(self, version: int) -> tuple[Row, list[RolledOutGroup]]:
        settings, rollouts = self._settings, self._task.rollouts
        sampling: dict[str, Any] = {"temperature": settings.temperature, **(settings.sampling or rollouts.sampling)}
        if rollouts.max_tokens:
            sampling["max_tokens"] = rollouts.max_tokens
        model = f"{self._directory.model.name}:step{version}"
        chat = OpenAIChat(self._openai, model, rollouts.max_shared(settings.samples_per_task), **sampling)
        room = asyncio.Semaphore(max(1, settings.concurrency // settings.samples_per_task))
        label, size = f"the evaluation of version {version}", settings.samples_per_task

        async def group(place: int, task: object) -> RolledOutGroup:
            async with room:
                name = f"eval/{place}"
                return await self._roll_out(chat, task, size, rollouts.timeout_s, name, f"Task {place} of {label}")

        began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(group(place, task)) for place, task in enumerate(self._tasks)]
        groups = [task.result() for task in running]
        self._notices.of_evaluation(label, groups)
        check_failures(groups, size, rollouts.max_failed_fraction, label)
        metrics = {f"eval/{name}": value for name, value in rollout_metrics(groups).items()}
        row = {
            "kind": "evaluation",
            "version": version,
            "time": time.time(),
            **metrics,
            "seconds/evaluation": time.monotonic() - began,
        }
        return row, groups
