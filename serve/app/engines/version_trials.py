"""Learners and engines try a version that no job has made, before anyone can request it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from tandem.cluster.config import DeadlinesConfig
from tandem.cluster.engine.versions.version_checks import VersionReport
from tandem.cluster.errors import ClusterError
from tandem.rl.errors import RLError
from tandem.rl.version_probe import VersionProbe
from tandem.serve.app.engines.handles import engine_check
from tandem.serve.errors import UnavailableError

logger = logging.getLogger(__name__)
MARGIN_S = 60.0  # for the coordinator to answer after its own deadline
ENGINE_S = 60.0
"""An engine that hasn't loaded a version by then loads it with its first request."""


class VersionTrials:
    """Calls the coordinator and the engines through Serve. For threads, not for an event loop."""

    def __init__(
        self,
        coordinator: DeploymentHandle[Any],
        engines: Mapping[str, DeploymentHandle[Any]],
        deadlines: DeadlinesConfig,
    ):
        self._coordinator, self._engines = coordinator, engines
        self._probe_s = deadlines.start_learners_s + 2 * deadlines.load_s + MARGIN_S

    def probe(self, base_model: str, digest: str) -> VersionProbe:
        response = self._coordinator.probe_version.remote(base_model, digest)
        try:
            probe: VersionProbe = response.result(timeout_s=self._probe_s)
        except (ClusterError, RLError, OSError, ray.exceptions.RayError, RayServeException) as error:
            response.cancel()  # type: ignore[no-untyped-call]
            logger.warning("The learners of %s couldn't try version %s", base_model, digest, exc_info=True)
            raise UnavailableError(
                f"The learners of {base_model} couldn't try the adapter: {_cause(error)}. Nothing was imported; try "
                "again in a moment.",
                "learners_unavailable",
            ) from error
        return probe

    def load(self, base_model: str, digest: str) -> Sequence[VersionReport | BaseException | None]:
        try:
            return engine_check(self._engines[base_model])(digest, None, ENGINE_S)
        except Exception as error:  # no engine runs; each checks the version itself before it serves it
            logger.info("No engine of %s has tried version %s: %r", base_model, digest, error)
            return ()


def _cause(error: BaseException) -> str:
    """Return the error's sentence, without the traceback that Ray adds."""
    found = getattr(error, "cause", None)
    return str(found if isinstance(found, Exception) else error).strip().splitlines()[-1].rstrip(".")
