"""Learners that can be made to fail, and the groups that have them."""

from __future__ import annotations

import sys
import time
from typing import Any

import ray
import torch
from trees import branching_group

from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig
from tandem.cluster.learners import actors
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.packing import PackedSequence, pack

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers don't have the tests' folder


class FaultyLearner(LearnerWorker):
    """A learner that a test can order to fail, or to wait, in its next rows."""

    def limit_memory(self, room: int) -> None:
        """Let torch really fail to allocate memory for rows of more than `room` tokens."""

        def before(row: PackedSequence) -> None:
            if row.num_tokens > room:
                torch.empty(1 << 60, dtype=torch.uint8)

        self._before_each_row(before)

    def sleep_in_rows(self, *seconds: float) -> None:
        """Sleep before the next rows, so long before each."""
        left = list(seconds)
        self._before_each_row(lambda row: time.sleep(left.pop(0)) if left else None)

    def _before_each_row(self, call: Any) -> None:
        policy = self._learner.policy
        whole = type(policy).logprobs

        def logprobs(row: PackedSequence, *args: Any, **kwargs: Any) -> Any:
            call(row)
            return whole(policy, row, *args, **kwargs)

        policy.logprobs = logprobs


def faulty_group(monkeypatch: Any, root: str, count: int, deadlines: DeadlinesConfig | None = None) -> LearnerGroup:
    monkeypatch.setattr(actors, "LearnerWorker", FaultyLearner)
    learners = LearnersConfig(count=count, num_cpus=0.5, num_gpus=0, sequences_per_step=2)
    base = BaseModelConfig(name="tandem/tiny", path="builtin:tiny", learners=learners)
    return LearnerGroup(base, root, deadlines or DeadlinesConfig())


def forests(*seeds: int) -> list[PackedSequence]:
    """Return rows of 49 tokens, whose longest sequence has 27."""
    return [row for seed in seeds for row in pack(branching_group(seed), 400, min_gain=1)]
