"""Scorers of a learner group: the learners that hold one copy of the base weights score together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from tandem.cluster.logprobs.pool import Score
from tandem.cluster.processes.ray_failures import stage_error

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.rl.packing import PackedSequence


def scorers(workers: list[Any], shard: int, digest: str, chunk_size: int, calling: threading.Lock) -> list[Score]:
    """Return one scorer per copy of the base weights, which `shard` neighbouring learners hold together.

    A scorer splits its rows over these learners and holds `calling` while it calls them, so that their calls and those
    of other threads have one order.
    """
    copies = [workers[first : first + shard] for first in range(0, len(workers), shard)]
    return [_scorer(copy, digest, chunk_size, calling) for copy in copies]


def _scorer(workers: list[Any], digest: str, chunk_size: int, calling: threading.Lock) -> Score:
    size = len(workers)

    def score(rows: Sequence[PackedSequence], timeout_s: float) -> list[Tensor]:
        deadline = time.monotonic() + timeout_s
        with calling:
            refs = [worker.score.remote(digest, rows[rank::size], chunk_size) for rank, worker in enumerate(workers)]
        try:
            shares = _results(refs, deadline)
        except ray.exceptions.RayError as error:
            raise stage_error("score", "a learner", error) from error
        return [shares[index % size][index // size] for index in range(len(rows))]

    return score


def _results(refs: list[Any], deadline: float) -> list[list[Tensor]]:
    """Return all results, or raise the first failure: the other learners may wait for the one that failed."""
    pending = refs
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise ray.exceptions.GetTimeoutError(f"{len(pending)} of {len(refs)} learners gave no logprobs in time.")
        ray.get(ready)
    results: list[list[Tensor]] = ray.get(refs)
    return results
