"""Compares an engine with the learners on the probe: the base model once, and every version that a job makes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tandem.cluster.engine.versions.version_checks import VersionReport, report
from tandem.cluster.errors import AdapterUnavailableError, StageError, VersionNotFiniteError
from tandem.cluster.jobs.running_job import RunningJob
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.cluster.processes.waiting import OnWait

if TYPE_CHECKING:
    from tandem.cluster.learners.group import LearnerGroup
    from tandem.rl.version_probe import Verdict

logger = logging.getLogger(__name__)
DISAGREES = "engine_disagrees"
ANSWER_S = 5.0  # an engine that doesn't answer in time isn't compared: a job must not wait for it
CLEARLY_WRONG = 0.3  # nats on average: more than any rounding

CheckVersion = Callable[[str, float], VersionReport | None]
"""Takes the digest of a version and a timeout in seconds. Has an engine load the version, and returns its verdict
(`Engine.check_version`)."""


@dataclass
class EngineAgreement:
    """Records an event of the job where the engine of a base model disagrees with its learners."""

    base_model: str
    initial_digest: str
    """Of version 0, whose adapter changes nothing."""
    dtype: str
    """The less precise one of learners and engine."""
    learners: LearnerGroup
    score: EngineScore
    check_version: CheckVersion
    alarm: str | None = field(default=None, init=False)
    """A sentence while the two disagree about the base model."""
    _of_base: Verdict | None = field(default=None, init=False)

    def compare_base(self, on_wait: OnWait) -> None:
        """Compare the two on the base model, unless that has been done."""
        if self._of_base is not None:
            return
        with self.learners.training("", 0) as training:
            probe = training.base_probe(on_wait)
        try:
            [found] = self.score([probe.token_ids], self.initial_digest, ANSWER_S)
        except Exception as error:  # without an engine, the next job tries again
            logger.info("The engine of %s isn't compared with its learners yet: %r", self.base_model, error)
            return
        self._of_base = probe.judge(found[1:], self.dtype)
        if not self._of_base.is_right:
            self.alarm = (
                f"The engine and the learners of {self.base_model} disagree: the engine's logprobs differ by "
                f"{self._of_base.difference}."
            )
            logger.error("%s", self.alarm)

    def before_training(self, job: RunningJob) -> None:
        """Record that the two disagree about the base model. Raise StageError if that is clear."""
        self.compare_base(job.check)
        if self._of_base is None or self.alarm is None:
            return
        if not self._of_base.difference.mean <= CLEARLY_WRONG:
            remedy = "Use a base model that vLLM and transformers compute alike, or set the same dtype for both."
            raise StageError("compare_engine", self.alarm, remedy)
        about = {"step": 0, "digest": self.initial_digest, "reason": self.alarm}
        job.record(DISAGREES, about | report(self._of_base))

    def after_publishing(self, job: RunningJob, step: int, digest: str) -> None:
        """Have an engine load the job's new version, and record if it doesn't answer as the learners do.

        Raises StageError if the version's logits aren't finite in the engine's dtype.
        """
        about = {"step": step, "digest": digest}
        try:
            found = self.check_version(digest, ANSWER_S)
        except VersionNotFiniteError as error:
            remedy = "Its training has probably diverged: lower learning_rate. The job made no version."
            raise StageError("compare_engine", str(error), remedy) from error
        except AdapterUnavailableError as error:
            reason = f"The engine can't load version {step}, which this job made: {error}"
            job.record(DISAGREES, about | {"reason": reason})
            return
        except Exception as error:  # the engine checks the version itself before it serves it
            logger.info("The engine of %s isn't compared on version %s: %r", self.base_model, digest, error)
            return
        if found is not None and not found["is_right"]:
            instead = f" Its answers are those of {found['answers_as']}." if found["answers_as"] else ""
            reason = (
                f"The engine doesn't apply version {step}, which this job made, and refuses to serve it: its logprobs "
                f"differ from the learner's by up to {found['max']:.3g} nats, {found['mean']:.3g} on average, where "
                f"{found['tolerance_max']:.3g} and {found['tolerance_mean']:.3g} are tolerated.{instead}"
            )
            job.record(DISAGREES, about | {"reason": reason} | found)
