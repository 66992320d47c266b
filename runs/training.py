"""Training jobs: one at a time, each batch exactly once, whatever is killed in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import zstandard

from tandem.runs.config import TaskConfig
from tandem.runs.directory import Posting, RunDirectory, StoredBatch
from tandem.runs.errors import ForeignVersionError, JobFailedError, PolicyLagError
from tandem.runs.ledger import Row
from tandem.runs.metrics import loss_metrics
from tandem.runs.report import Report
from tandem.runs.rolling import BatchRoller
from tandem.runs.service import TrainingService
from tandem.runs.stopwatch import Stopwatch
from tandem.runs.versions import VersionWatch

EVENTS_PERIOD_S = 1.0
AFTER_VERSION_S = 0.05  # from a version that can be sampled to the event that says so


class Trainer:
    """Trains the batches of a run in order and writes each into the ledger.

    A job is posted once the one before has made its version: were it queued behind one that fails, it would be trained
    on the wrong version. What is posted is on disk before, with the batch's idempotency key, so posting it again after
    a crash gives the same job.
    """

    def __init__(
        self,
        task: TaskConfig,
        directory: RunDirectory,
        service: TrainingService,
        versions: VersionWatch,
        batches: BatchRoller,
        stopwatch: Stopwatch,
        report: Report,
    ):
        self._task, self._directory, self._service, self._versions = task, directory, service, versions
        self._batches, self._stopwatch, self._report = batches, stopwatch, report

    async def run(self) -> None:
        """Raises RunError."""
        for index in range(self._directory.ledger.num_trained, self._task.training.jobs):
            asked = time.monotonic()
            await self._batches.stored(index)
            batch = self._directory.stored_batch(index)
            waited_s = time.monotonic() - asked
            row = await self._train(batch)
            row["seconds/waiting_for_rollouts"] = waited_s
            self._directory.ledger.append(row)
            if not self._task.output.keep_batches:
                self._directory.drop_batch(index)
            self._report.progress.num_trained = index + 1
            self._report.row(row)

    async def _train(self, batch: StoredBatch) -> Row:
        posting = self._directory.state.posting
        was_posted = posting is not None and posting.batch == batch.index
        if not was_posted:
            check_lag(batch, self._start_version, self._versions.newest, self._task.training.max_policy_lag)
            posting = self._begin_posting(batch, attempt=0)
        began = time.monotonic()
        try:
            job, steps = await self._job(batch, posting)
        except JobFailedError as error:
            if not was_posted:
                raise
            # It failed before this process began: that has been mended, or the next attempt fails too.
            self._report.say(f"{error} It is posted again.")
            posting = self._begin_posting(batch, posting.attempt + 1)
            job, steps = await self._job(batch, posting)
        return {
            "kind": "training",
            "version": self._start_version + batch.index + 1,
            "batch": batch.index,
            "job": job,
            "time": time.time(),
            **batch.metrics,
            **loss_metrics(steps),
            "gradient_steps": len(steps),
            "seconds/training": time.monotonic() - began,
        }

    @property
    def _start_version(self) -> int:
        return self._directory.state.model.start_version

    def _begin_posting(self, batch: StoredBatch, attempt: int) -> Posting:
        config = self._task.training.experimental_config.model_dump(mode="json", exclude_none=True)
        posting = Posting(batch=batch.index, attempt=attempt, experimental_config=config)
        self._directory.update(posting=posting)
        return posting

    async def _job(self, batch: StoredBatch, posting: Posting) -> tuple[str, list[dict[str, float]]]:
        """Posts the batch and follows its job to its end. Returns the job's id and the metrics of its gradient steps.

        Raises JobFailedError and ForeignVersionError."""
        state = self._directory.state
        self._stopwatch.start()
        job = await self._service.post_job(
            request_body(state.model.id, posting.experimental_config, batch.groups_zstd),
            f"{state.run_id}-{posting.batch}-{posting.attempt}",
        )
        version = self._start_version + batch.index + 1
        steps = await self._follow(job, batch.index, version)
        self._stopwatch.stop()
        await self._versions.saw(version)
        made = (await self._service.job(job))["step"]
        if made != version:
            raise ForeignVersionError(
                f"Training job {job} of batch {batch.index} has made version {made} of {state.model.name} instead of "
                f"{version}: something else trains this model too. Stop it, and begin this run anew with a model of "
                "its own (another name)."
            )
        return job, steps

    async def _follow(self, job: str, batch: int, version: int) -> list[dict[str, float]]:
        progress = self._report.progress
        progress.training_batch, progress.num_steps, progress.num_steps_done = batch, 0, 0
        steps: list[dict[str, float]] = []
        after: str | None = None
        while True:
            events = await self._service.events_after(job, after)
            for event in events:
                after, data = event["id"], event["data"]
                match event["type"]:
                    case "training_started":
                        progress.num_steps = data.get("num_gradient_steps", 0)
                    case "gradient_step":
                        steps.append(data)
                        progress.num_steps_done = len(steps)
                    case "training_ended":
                        progress.training_batch = None
                        return steps
                    case "training_failed":
                        raise JobFailedError(
                            f"Training job {job} of batch {batch} (from version {version - 1} to {version}) failed: "
                            f"{data.get('error_message')} Once that is mended, the same command posts it again."
                        )
            if not events and await self._versions.at_least_within(version, EVENTS_PERIOD_S):
                await asyncio.sleep(AFTER_VERSION_S)


def check_lag(batch: StoredBatch, start_version: int, newest_version: int, max_policy_lag: int) -> None:
    """Checked where a batch is consumed. Raises ForeignVersionError when the model isn't at the batch's version, and
    PolicyLagError when an older policy sampled it than is allowed."""
    trained_on = start_version + batch.index
    if newest_version != trained_on:
        raise ForeignVersionError(
            f"Batch {batch.index} is to be trained on version {trained_on}, but the newest version of the model is "
            f"{newest_version}: something else trains this model too. Stop it, and begin this run anew with a model "
            "of its own (another name)."
        )
    lag = trained_on - batch.oldest_version
    if not 0 <= lag <= max_policy_lag:
        raise PolicyLagError(
            f"Batch {batch.index} is to be trained on version {trained_on}, and the oldest policy that sampled any of "
            f"its turns is version {batch.oldest_version}: a lag of {lag}, where max_policy_lag is {max_policy_lag} "
            f"(the run began with version {start_version})."
        )


def request_body(model_id: str, experimental_config: dict[str, Any], groups_zstd: bytes) -> bytes:
    """The JSON of a training job's request, as zstd. It is the same for the same arguments.

    Compressed streams may follow one another, so the groups needn't be unpacked for it.
    """
    head = {"model_id": model_id, "experimental_config": experimental_config}
    compress = zstandard.ZstdCompressor().compress
    opening = json.dumps(head).removesuffix("}") + ', "trajectory_groups": '
    return compress(opening.encode()) + groups_zstd + compress(b"}")
