"""The reference: the same jobs trained one after the other by one learner in this process, without interruptions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path

from pydantic import TypeAdapter

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.config import TrainingConfig
from tandem.rl.steps import gradient_steps
from tandem.rl.trajectories import TrajectoryGroup

_GROUPS = TypeAdapter(list[TrajectoryGroup])


class UninterruptedRun:
    """Trains jobs from version 0 and returns the digests of their versions.

    The jobs' ids are those of the service, because the order of a job's batch follows from its id.
    """

    def __init__(self, config: BaseModelConfig, directory: Path):
        self._base, self._artifacts = ResolvedBaseModel(config), Artifacts(str(directory))
        self._learner = LearnerWorker(0, 1, config, str(directory))
        self._learner.start(None, timeout_s=60)

    def digests(self, jobs: Sequence[tuple[str, bytes]]) -> list[str]:
        """`jobs`: id and request body of each job of one model, in order. Return one digest for each."""
        self._learner.load(self._base.write_initial_version(self._artifacts))
        return [self._train(version, id, body) for version, (id, body) in enumerate(jobs)]

    def _train(self, version: int, id: str, body: bytes) -> str:
        wanted = json.loads(body)
        config = TrainingConfig.model_validate(wanted["experimental_config"])
        groups = _GROUPS.validate_python(wanted["trajectory_groups"])
        rows = self._base.build_batch(groups, config, shuffle_seed=uuid.UUID(id).int).sequences
        assert config.learning_rate is not None
        for _ in gradient_steps(self._learner, rows, config, config.learning_rate, version):
            pass
        assert self._learner.finish() is None
        digest = self._learner.write({})
        self._learner.keep(digest)
        self._learner.load(digest)
        return digest
