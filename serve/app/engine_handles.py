"""Calls of engine replicas through Serve's handles, for the API and for the coordinator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from tandem.cluster.engine.version_checks import VersionReport
from tandem.cluster.errors import EngineDeadError
from tandem.cluster.jobs.engine_agreement import CheckVersion
from tandem.cluster.logprobs.engine_scorer import EngineScore
from tandem.serve.api.services import Headers


class Engines:
    """The API's client of the engine replicas of each base model."""

    def __init__(self, handles: Mapping[str, DeploymentHandle[Any]]):
        self._handles = {name: handle.options(stream=True) for name, handle in handles.items()}

    async def http(
        self, base_model: str, method: str, path: str, headers: Headers, body: bytes, digest: str
    ) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        """Yield status and headers first, then chunks of the body. Closing the generator early aborts the generation.

        Raises EngineDeadError."""
        stream = self._handles[base_model].http.remote(method, path, headers, body, digest)
        finished = False
        try:
            async for item in stream:  # type: ignore[union-attr]  # it streams, as `options` says
                yield item
            finished = True
        except ray.exceptions.RayActorError as error:
            raise EngineDeadError(
                f"The engine of {base_model} died while it answered; send the request again."
            ) from error
        finally:
            if not finished:
                stream.cancel()  # type: ignore[no-untyped-call]


def engine_score(handle: DeploymentHandle[Any]) -> EngineScore:
    """Return the coordinator's way to score sequences. Serve picks the replica with the fewest open requests."""

    def score(sequences: list[list[int]], digest: str, timeout_s: float) -> list[list[float]]:
        response = handle.score.remote(sequences, digest)
        try:
            logprobs: list[list[float]] = response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return logprobs

    return score


def engine_check(handle: DeploymentHandle[Any]) -> CheckVersion:
    """Return the coordinator's way to have a version loaded and compared with its learner."""

    def check(digest: str, timeout_s: float) -> VersionReport | None:
        response = handle.check_version.remote(digest)
        try:
            report: VersionReport | None = response.result(timeout_s=timeout_s)
        except TimeoutError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        return report

    return check
