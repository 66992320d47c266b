"""How one and two learners share a gradient step: each a process of one thread, all-reducing over gloo."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from learner_throughput import LEARNING_RATE, Workload

COUNTS = (1, 2)
ROUND_S = 600.0
"""Deadline of a round: a rank that dies would leave the others waiting."""


def measure_learners(
    found: dict[str, Any], tell: Callable[[str], None], work: Workload | None = None, rounds: int = 2, steps: int = 3
) -> None:
    """Write into `found` the seconds of a step of the same rows by 1 and 2 learners, by turns, and the efficiency:
    the seconds of one over those of two, divided by two.

    A round has `steps` steps, after one that isn't counted.
    """
    work = work or Workload()
    seconds: dict[int, list[float]] = {count: [] for count in COUNTS}
    with tempfile.TemporaryDirectory() as directory:
        work.make_model(Path(directory, "model"))
        for round in range(rounds):
            for count in COUNTS:
                tell(f"round {round + 1} of {rounds}, {count} learners")
                seconds[count] += _steps(Path(directory), work, count, steps)
    found["seconds"] = {str(count): values for count, values in seconds.items()}
    found["efficiency"] = statistics.median(seconds[1]) / statistics.median(seconds[2]) / 2
    tell(f"two learners: efficiency {found['efficiency']:.2f}")


def _steps(directory: Path, work: Workload, count: int, steps: int) -> list[float]:
    """Return the seconds of each step, as rank 0 saw them."""
    meeting = Path(tempfile.mkdtemp(dir=directory), "meeting")  # torch makes the file
    shares = [(directory / "model", work, rank, count, meeting, steps) for rank in range(count)]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tandem.rl.learner", "peft"])  # imported once for all ranks
    with context.Pool(count) as pool:
        return pool.starmap_async(_rank, shares, chunksize=1).get(ROUND_S)[0]


def _rank(model: Path, work: Workload, rank: int, count: int, meeting: Path, steps: int) -> list[float]:
    import torch
    import torch.distributed as dist

    from tandem.cluster.learners.shards import shard_by_tokens
    from tandem.rl.config import LossConfig
    from tandem.rl.learner import Learner
    from tandem.rl.models.freed_memory import keep_freed_memory
    from tandem.rl.packing import pack
    from tandem.rl.policy import Policy
    from tandem.rl.settings import LoraSettings

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    keep_freed_memory()
    learner = Learner(Policy.load(model, "cpu", "float32", lora=LoraSettings(r=work.lora_r)))
    rows = [row for group in work.make_groups() for row in pack(group, sum(s.num_tokens for s in group))]
    share = shard_by_tokens(rows, count)[rank]
    seconds = []
    for _ in range(1 + steps):
        dist.barrier()
        began = time.perf_counter()
        learner.step(share, LossConfig(), LEARNING_RATE)
        seconds.append(time.perf_counter() - began)
    dist.destroy_process_group()
    return seconds[1:]
