"""Follow a training job: show its events in the fine-tuning job, and wait for its version."""

from __future__ import annotations

from collections.abc import Sequence

from tandem.cluster.errors import JobCancelledError
from tandem.serve.finetuning.running.supervision import JobFailedError, Supervision
from tandem.serve.finetuning.store.claims import ClaimedFineTuning, Note
from tandem.serve.finetuning.store.store import FineTuningStore
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import EventRow, JobRow, ModelRow

POLL_S = 0.3
EVENTS_AT_ONCE = 500
METRICS = {
    "loss/train": "train_loss",
    "dpo/reward_margin": "train_reward_margin",
    "dpo/accuracy": "train_reward_accuracy",
    "dpo/reward_chosen": "train_reward_preferred",
    "dpo/reward_rejected": "train_reward_non_preferred",
    "loss/kl_policy_ref": "train_kl",
    "loss/entropy": "train_entropy",
    "loss/grad_norm": "grad_norm",
    "loss/learning_rate": "learning_rate",
    "loss": "train_loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "sft/loss": "train_loss",
    "sft/grad_norm": "grad_norm",
    "sft/learning_rate": "learning_rate",
    "reward": "train_mean_reward",
    "reward_std_dev": "train_reward_std_dev",
}
"""Names of a training job's metrics, and those in events and checkpoints here."""


class Following:
    """The training jobs of one fine-tuning job."""

    def __init__(
        self,
        job: ClaimedFineTuning,
        model: ModelRow,
        supervision: Supervision,
        store: Store,
        finetuning: FineTuningStore,
        total_steps: int | None = None,
    ):
        """`total_steps` is the number of gradient steps of the whole job, if it is known."""
        self._job, self._model, self._supervision, self._store = job, model, supervision, store
        self._claims, self._total_steps = finetuning.claims, total_steps

    def follow(self, index: int, training_job_id: str) -> JobRow:
        """Return training job number `index`, which has succeeded, once its version is a checkpoint of this job.

        Raises JobFailedError, and what `Supervision.wait` raises: JobCancelledError after the training has ended.
        """
        before = self._claims.num_gradient_steps(self._job, index + 1)
        num_shown = self._claims.num_shown(self._job, str(index))
        while True:
            training = self._store.jobs.get(training_job_id, self._job.entity)
            events = self._store.jobs.events(training_job_id, self._job.entity, EVENTS_AT_ONCE, num_shown)
            if events:
                self._show(index, events, before)
                num_shown = events[-1].seq
            elif training.state not in ("queued", "running"):
                break
            else:
                self._wait(training_job_id)
        if training.state == "cancelled":
            raise JobFailedError(f"Training job {training_job_id} was cancelled.")
        if training.state != "succeeded" or training.step is None:
            raise JobFailedError(training.error or f"Training job {training_job_id} failed.")
        self._record(index, training, training.step, before)
        return training

    def _wait(self, training_job_id: str) -> None:
        try:
            self._supervision.wait(POLL_S)
        except JobCancelledError:
            self._store.jobs.request_cancel(training_job_id, self._job.entity)
            while self._store.jobs.get(training_job_id, self._job.entity).state in ("queued", "running"):
                self._supervision.wait_held(POLL_S)
            raise

    def _show(self, index: int, events: Sequence[EventRow], before: int) -> None:
        steps = self._store.jobs.num_gradient_steps(events[0].job_id, events[0].seq)
        notes: list[Note] = []
        for event in events:
            match event.type:
                case "training_started":
                    self._claims.running(self._job)
                case "gradient_step":
                    steps += 1
                    notes.append(self._step_note(before + steps, event))
                case "warning" | "engine_disagrees":
                    notes.append(Note(str(event.data.get("message", event.type)), "warn"))
        self._claims.show(self._job, str(index), events[-1].seq, notes)

    def _step_note(self, step: int, event: EventRow) -> Note:
        metrics = renamed(event.data)
        of = f"/{self._total_steps}" if self._total_steps else ""
        loss = f": training loss={metrics['train_loss']:.4g}" if "train_loss" in metrics else ""
        total = {"total_steps": self._total_steps} if self._total_steps else {}
        return Note(f"Step {step}{of}{loss}", metrics={"step": step, **total, **metrics})

    def _record(self, index: int, training: JobRow, step: int, before: int) -> None:
        versions = self._store.versions.page(self._model.id, self._job.entity, 1, step - 1, with_retired=True)
        metrics = renamed(versions[0].metrics) if versions else {}
        self._claims.add_checkpoint(
            self._job,
            number=index + 1,
            step=step,
            gradient_steps=before + training.num_gradient_steps,
            model=f"{self._model.path}:step{step}",
            metrics=metrics,
        )


def renamed(metrics: object) -> dict[str, float]:
    """Return the known metrics of a training job's event or version, under the names of this API."""
    found: dict[str, float] = {}
    if isinstance(metrics, dict):
        for name, value in metrics.items():
            if name in METRICS and isinstance(value, int | float):
                found.setdefault(METRICS[name], value)
    return found
