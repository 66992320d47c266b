"""Calls of engine replicas through Serve's handles, for the coordinator."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle

from tandem.cluster.config import TandemConfig
from tandem.cluster.engine.metrics.usage import EngineUsage
from tandem.cluster.engine.versions.version_checks import VersionReport
from tandem.cluster.jobs.engine_agreement import CheckVersion
from tandem.cluster.jobs.engine_sleep import Answers, EnginesAsleep
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.cluster.telemetry.context import current_ids
from tandem.serve.usage.collection import FetchUsage


def engine_score(handle: DeploymentHandle[Any], job_id: str = "") -> EngineScore:
    """Return the coordinator's way to score sequences. Serve picks the replica with the fewest open requests.

    The engine charges its time to the job.
    """

    def score(sequences: list[list[int]], digest: str, timeout_s: float) -> list[list[float]]:
        response = handle.score.remote(sequences, digest, current_ids(), job_id)
        try:
            logprobs: list[list[float]] = response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return logprobs

    return score


def engine_check(handle: DeploymentHandle[Any]) -> CheckVersion:
    """Return the coordinator's way to have every replica load a version and compare it with its learner.

    Ray's object store carries the files, to each node once.
    """

    def check(digest: str, files: Any, timeout_s: float) -> list[VersionReport | BaseException | None]:
        answers = handle.broadcast("check_version", digest, files, current_ids())
        return answers.results(timeout_s=timeout_s, return_exceptions=True)

    return check


def engine_usage(handle: DeploymentHandle[Any]) -> FetchUsage:
    """Return the coordinator's way to fetch from every replica what it has counted."""

    def fetch(acknowledged: dict[str, int], timeout_s: float) -> list[EngineUsage | BaseException]:
        answers = handle.broadcast("usage", acknowledged)
        return answers.results(timeout_s=timeout_s, return_exceptions=True)

    return fetch


def engines_asleep(handle: DeploymentHandle[Any], config: TandemConfig) -> EnginesAsleep:
    """Return the coordinator's way to have every replica sleep while the learners work."""

    def sleep(holder: str, lease_s: float, timeout_s: float) -> Answers:
        return handle.broadcast("sleep", holder, lease_s).results(timeout_s=timeout_s, return_exceptions=True)

    def wake_up(holder: str, timeout_s: float) -> Answers:
        return handle.broadcast("wake_up", holder).results(timeout_s=timeout_s, return_exceptions=True)

    deadlines = config.deadlines
    return EnginesAsleep(
        sleep, wake_up, config.coordinator.lease_s, deadlines.inference_s + deadlines.engine_answer_s, deadlines.load_s
    )
