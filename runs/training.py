"""Training jobs: one at a time, each batch exactly once, even if processes are killed in between."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import zstandard

from tandem.client import AsyncClient, Event, InvalidRequestError
from tandem.runs.config import TaskConfig
from tandem.runs.directory import Posting, RunDirectory, StoredBatch
from tandem.runs.errors import BatchRefusedError, ForeignVersionError, JobFailedError, PolicyLagError
from tandem.runs.ledger import Row
from tandem.runs.repairing import repaired
from tandem.runs.reporting.metrics import loss_metrics, training_counts
from tandem.runs.reporting.report import Report
from tandem.runs.reporting.stopwatch import Stopwatch
from tandem.runs.rolling import BatchRoller
from tandem.runs.versions import VersionWatch

EVENTS_PERIOD_S = 1.0
AFTER_VERSION_S = 0.05  # the time between the appearance of a version and its job's last event


class Trainer:
    """Trains the batches of a run in order and writes each into the ledger.

    A job is posted after the previous one has made its version: a job queued behind one that fails would train the
    wrong version. A batch and its idempotency key are on disk before it is posted, so posting it again after a crash
    returns the same job.
    """

    def __init__(
        self,
        task: TaskConfig,
        directory: RunDirectory,
        client: AsyncClient,
        versions: VersionWatch,
        batches: BatchRoller,
        stopwatch: Stopwatch,
        report: Report,
    ):
        self._task, self._directory, self._client, self._versions = task, directory, client, versions
        self._batches, self._stopwatch, self._report = batches, stopwatch, report
        self._warned = set[Any]()  # kinds

    async def run(self) -> None:
        """Train all batches that are left. Raise RunError."""
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
        if posting is None or not was_posted:
            check_lag(batch, self._start_version, self._versions.newest, self._task.training.max_policy_lag)
            posting = self._begin_posting(batch, attempt=0)
        began = time.monotonic()
        try:
            job, events = await self._accepted_job(batch, posting)
        except JobFailedError as error:
            if not was_posted:
                raise
            # It failed in an earlier process. If the cause remains, the next attempt fails too.
            self._report.say(f"{error} It is posted again.")
            batch = self._directory.stored_batch(batch.index)  # perhaps repaired
            posting = self._begin_posting(batch, self._attempt + 1)
            job, events = await self._accepted_job(batch, posting)
        steps = [event.data for event in events if event.type == "gradient_step"]
        return {
            "kind": "training",
            "version": self._start_version + batch.index + 1,
            "batch": batch.index,
            "job": job,
            "time": time.time(),
            **batch.metrics,
            **training_counts(events),
            **loss_metrics(steps),
            "gradient_steps": len(steps),
            "seconds/training": time.monotonic() - began,
        }

    @property
    def _start_version(self) -> int:
        return self._directory.model.start_version

    def _begin_posting(self, batch: StoredBatch, attempt: int) -> Posting:
        config = self._task.training.experimental_config.model_dump(mode="json", exclude_none=True)
        posting = Posting(batch=batch.index, attempt=attempt, experimental_config=config)
        self._directory.update(posting=posting)
        return posting

    @property
    def _attempt(self) -> int:
        posting = self._directory.state.posting
        assert posting is not None, "a batch is being posted"
        return posting.attempt

    async def _accepted_job(self, batch: StoredBatch, posting: Posting) -> tuple[str, list[Event]]:
        """Do `_job`, without the trajectories that the service rejects.

        Raise BatchRefusedError if too few are left, and set the batch aside, or every start would post it again.
        """
        while True:
            try:
                return await self._job(batch, posting)
            except InvalidRequestError as error:
                repair = await asyncio.to_thread(repaired, batch.groups_zstd, error.faults)
                num_wanted = self._task.rollouts.groups_per_job * self._task.rollouts.group_size
                least = max(1, num_wanted * (1 - self._task.rollouts.max_failed_fraction))
                if repair is None or repair.num_left < least:
                    aside = self._directory.set_aside(batch.index)
                    self._begin_posting(batch, posting.attempt + 1)
                    raise BatchRefusedError(
                        f"The service rejected batch {batch.index}: {error} It was set aside ({aside}). Fix the cause; "
                        "the same command rolls the batch out again."
                    ) from error
                self._report.say(f"The service rejected batch {batch.index}: {error} It is posted without {repair}.")
                self._directory.replace_groups(batch.index, repair.groups_zstd)
                batch = self._directory.stored_batch(batch.index)
                posting = self._begin_posting(batch, posting.attempt + 1)

    async def _job(self, batch: StoredBatch, posting: Posting) -> tuple[str, list[Event]]:
        """Post the batch and follow its job to its end. Return the job's id and its events.

        Raise JobFailedError or ForeignVersionError."""
        state, model = self._directory.state, self._directory.model
        self._stopwatch.start()
        job = await self._client.post_job(
            request_body(model.id, posting.experimental_config, batch.groups_zstd),
            content_encoding="zstd",
            idempotency_key=f"{state.run_id}-{posting.batch}-{posting.attempt}",
        )
        version = self._start_version + batch.index + 1
        events = await self._follow(job, batch.index, version)
        self._stopwatch.stop()
        await self._versions.saw(version)
        made = (await self._client.get_job(job)).step
        if made != version:
            raise ForeignVersionError(
                f"Training job {job} of batch {batch.index} made version {made} of {model.name} instead of {version}: "
                "another program also trains this model. Stop that program, and start a new run with another name."
            )
        return job, events

    async def _follow(self, job: str, batch: int, version: int) -> list[Event]:
        progress = self._report.progress
        progress.training_batch, progress.num_steps, progress.num_steps_done = batch, 0, 0
        seen: list[Event] = []
        after: str | None = None
        while True:
            events = await self._client.new_events(job, after)
            for event in events:
                after = event.id
                seen.append(event)
                match event.type:
                    case "training_started":
                        progress.num_steps = event.data.get("num_gradient_steps", 0)
                    case "warning":
                        self._warn(batch, event.data)
                    case "gradient_step":
                        progress.num_steps_done += 1
                    case "training_ended":
                        progress.training_batch = None
                        return seen
                    case "training_failed":
                        raise JobFailedError(
                            f"Training job {job} of batch {batch} (from version {version - 1} to {version}) failed: "
                            f"{event.data.get('error_message')} Fix the cause; the same command posts it again."
                        )
            if not events and await self._versions.at_least_within(version, EVENTS_PERIOD_S):
                await asyncio.sleep(AFTER_VERSION_S)

    def _warn(self, batch: int, warning: dict[str, Any]) -> None:
        """Show a warning of a job, except one that a run's rows show or that an earlier job of the run had."""
        kind = warning.get("kind")
        if kind == "nothing_trained" or kind not in {*self._warned, "partly_trained"}:
            self._report.say(f"Batch {batch}: {warning.get('message')}")
        self._warned.add(kind)


def check_lag(batch: StoredBatch, start_version: int, newest_version: int, max_policy_lag: int) -> None:
    """Check a batch where it is consumed.

    Raise ForeignVersionError if the model isn't at the batch's version, and PolicyLagError if a policy that is too old
    sampled it."""
    trained_on = start_version + batch.index
    if newest_version != trained_on:
        raise ForeignVersionError(
            f"Batch {batch.index} must be trained on version {trained_on}, but the newest version of the model is "
            f"{newest_version}: another program also trains this model. Stop that program, and start a new run with "
            "another name."
        )
    lag = trained_on - batch.oldest_version
    if not 0 <= lag <= max_policy_lag:
        raise PolicyLagError(
            f"Batch {batch.index} must be trained on version {trained_on}, and the oldest policy that sampled any of "
            f"its turns is version {batch.oldest_version}: a lag of {lag}, but max_policy_lag is {max_policy_lag} "
            f"(the run started at version {start_version})."
        )


def request_body(model_id: str, experimental_config: dict[str, Any], groups_zstd: bytes) -> bytes:
    """Return the JSON of a training job's request as zstd, always the same for the same arguments.

    Zstd frames may follow one another, so the stored groups needn't be unpacked.
    """
    head = {"model_id": model_id, "experimental_config": experimental_config}
    compress = zstandard.ZstdCompressor().compress
    opening = json.dumps(head).removesuffix("}") + ', "trajectory_groups": '
    return compress(opening.encode()) + groups_zstd + compress(b"}")
