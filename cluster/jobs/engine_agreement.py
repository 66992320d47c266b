"""Compares an engine with the learners on the probe: the base model once, and every version that a job makes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tandem.cluster.engine.versions.version_checks import VersionReport, report
from tandem.cluster.errors import AdapterUnavailableError, StageError, VersionNotFiniteError
from tandem.cluster.learners.training import SealedVersion
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.cluster.processes.deadlines import in_thread
from tandem.cluster.processes.waiting import OnWait

if TYPE_CHECKING:
    from tandem.cluster.learners.group import LearnerGroup
    from tandem.rl.version_probe import Verdict

logger = logging.getLogger(__name__)
DISAGREES = "engine_disagrees"
ANSWER_S = 5.0  # an engine that doesn't answer in time isn't compared: a job must not wait for it
CLEARLY_WRONG = 0.3  # nats on average: more than any rounding of weights that both read from the same files

Answers = Sequence[VersionReport | BaseException | None]
CheckVersion = Callable[[str, Any, float], Answers]
"""Takes the digest of a version, Ray's reference to its files (None once it is durable) and a timeout in seconds. Has
every engine load the version, and returns the verdict or the error of each (`Engine.check_version`)."""


class Work(Protocol):
    """The job or call that makes versions."""

    def check(self) -> None:
        """Raise an exception if the work has to end."""

    def record(self, event: str, data: Mapping[str, Any]) -> None:
        """Show its user an event."""


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

    def before_training(self, job: Work) -> None:
        """Record that the two disagree about the base model. Raise StageError if that is clear."""
        self.compare_base(job.check)
        if self._of_base is None or self.alarm is None:
            return
        difference = self._of_base.difference
        if not difference.mean <= max(CLEARLY_WRONG, difference.tolerance.mean):
            remedy = "Use a base model that vLLM and transformers compute alike, or set the same dtype for both."
            raise StageError("compare_engine", self.alarm, remedy)
        about = {"step": 0, "digest": self.initial_digest, "reason": self.alarm}
        job.record(DISAGREES, about | report(self._of_base))

    def offer(self, version: SealedVersion) -> Future[Answers]:
        """Have all engines load a version that isn't durable yet, and return their verdicts later.

        Nobody can request it before it is the newest, so it does no harm if that never happens.
        """
        return in_thread(lambda: self.check_version(version.digest, version.files, ANSWER_S), "offer-version")

    def after_publishing(self, job: Work, step: int, digest: str, offered: Future[Answers] | None = None) -> None:
        """Wait until all engines have loaded the job's new version, which is durable now, but no longer than ANSWER_S.

        Records if one doesn't answer as the learners do. One that isn't ready loads the version with its first request.
        Raises StageError if the version's logits aren't finite in the engine's dtype.
        """
        answers = self._answers(digest, offered)
        for answer in answers:
            if isinstance(answer, VersionNotFiniteError):
                remedy = "Its training has probably diverged: lower learning_rate. No version was made."
                raise StageError("compare_engine", str(answer), remedy) from answer
        about = {"step": step, "digest": digest}
        for answer in answers:
            if isinstance(answer, AdapterUnavailableError):
                reason = f"The engine can't load version {step}: {answer}"
                return job.record(DISAGREES, about | {"reason": reason})
            if isinstance(answer, dict) and not answer["is_right"]:
                reason = _why_refused(step, answer)
                return job.record(DISAGREES, about | {"reason": reason} | answer)
        if late := [answer for answer in answers if isinstance(answer, BaseException)]:
            logger.warning(
                "%d of %d engines of %s haven't loaded version %s before it became the newest: %r",
                *(len(late), len(answers), self.base_model, digest, late[0]),
            )

    def _answers(self, digest: str, offered: Future[Answers] | None) -> Answers:
        """Return the answer of each engine. Those that couldn't use the offered files fetch the durable ones."""
        deadline = time.monotonic() + ANSWER_S
        answers: Answers = ()
        if offered is not None:
            with suppress(Exception):
                answers = offered.result(ANSWER_S)
        if answers and not any(map(_can_be_repeated, answers)):
            return answers
        try:
            return self.check_version(digest, None, max(deadline - time.monotonic(), 0.0))
        except Exception as error:  # no engine runs; each checks the version itself before it serves it
            logger.info("No engine of %s is compared on version %s: %r", self.base_model, digest, error)
            return answers


def _can_be_repeated(answer: VersionReport | BaseException | None) -> bool:
    """Return whether a failure may be one of the offered files. An engine that is slow isn't asked again."""
    return isinstance(answer, BaseException) and not isinstance(answer, TimeoutError | VersionNotFiniteError)


def _why_refused(step: int, found: VersionReport) -> str:
    instead = f" Its answers are those of {found['answers_as']}." if found["answers_as"] else ""
    return (
        f"The engine doesn't apply version {step} and refuses to serve it: its logprobs "
        f"differ from the learner's by up to {found['max']:.3g} nats, {found['mean']:.3g} on average, where "
        f"{found['tolerance_max']:.3g} and {found['tolerance_mean']:.3g} are tolerated.{instead}"
    )
