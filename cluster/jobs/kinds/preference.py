"""Direct preference optimization: pairs of answers in the order of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from tandem.cluster.jobs.kinds.kind import JobKind, JobWork, Outline
from tandem.cluster.jobs.warnings import warning_data
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE
from tandem.rl.preferences.config import PreferenceConfig
from tandem.rl.preferences.steps import preference_steps

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.jobs.job import ClaimedJob, QueuedJob
    from tandem.cluster.jobs.preparation import TextModel
    from tandem.rl.gradient_step.size import StepSize
    from tandem.rl.packing import PackedSequence
    from tandem.rl.preferences.batch import PreferenceBatch


class Preference(JobKind[PreferenceConfig, "PreferenceBatch"]):
    """The payload is zstd-compressed JSON lines of pairs. The job's batch size decides the steps, not the learners'
    step size. The reference is the job's own (`reference_digest`), else the version that it starts from."""

    name = "dpo"
    options = PreferenceConfig
    remedy = "Correct the pairs or the options, and post a new job."

    def build(self, base: TextModel, artifacts: Artifacts, job: QueuedJob) -> PreferenceBatch:
        from tandem.cluster.payloads.rows import read_rows
        from tandem.rl.preferences.batch import build_preferences
        from tandem.rl.preferences.rows import PreferenceRow

        rows = read_rows(artifacts, job.payload_key, PreferenceRow)
        return build_preferences(rows, base.text, self.options_of(job))

    def outline(self, batch: PreferenceBatch, job: ClaimedJob, step_size: StepSize) -> Outline:
        started = {
            "num_sequences": len(batch.sequences),
            "num_gradient_steps": len(batch.steps),
            "num_pairs": batch.num_pairs,
            "num_trained_tokens": batch.num_trained_tokens,
            "num_dropped_too_long": batch.num_too_long,
        }
        return Outline(len(batch.steps), started, {}, list(_warnings(batch)))

    def steps(self, batch: PreferenceBatch, job: ClaimedJob, work: JobWork) -> Iterator[dict[str, float]]:
        def score(digest: str, rows: Sequence[PackedSequence]) -> list[Tensor]:
            return work.score(digest, rows, DEFAULT_LOGPROB_CHUNK_SIZE)

        reference = job.reference_digest or job.version.digest
        yield from preference_steps(work, batch, self.options_of(job), score, reference)


def _warnings(batch: PreferenceBatch) -> Iterator[Mapping[str, object]]:
    if batch.num_too_long:
        message = (
            f"{batch.num_too_long} of {batch.num_pairs + batch.num_too_long} pairs are longer than the model's limit "
            f"of {batch.max_model_len} tokens and were left out."
        )
        yield warning_data("partly_trained", message, {"too_long": batch.num_too_long})
