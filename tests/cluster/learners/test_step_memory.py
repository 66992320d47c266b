"""Steps over rows that are too long: repeated, remembered over jobs, reported, or refused with the place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import ray
from faulty_learners import forests

from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.learners.memory import StepMemory, first_shortage, shortage_behind
from tandem.cluster.processes.ray_failures import stage_error
from tandem.rl.config import LossConfig
from tandem.rl.errors import OutOfMemoryError
from tandem.rl.packing import PackedSequence


class Steps:
    """Succeeds for rows of up to `room` tokens."""

    def __init__(self, room: int) -> None:
        self.room, self.taken = room, list[list[int]]()

    def __call__(self, rows: Sequence[PackedSequence], loss: LossConfig, rate: float, chunk: int) -> dict[str, float]:
        self.taken.append([row.num_tokens for row in rows])
        for row in rows:
            if row.num_tokens > self.room:
                raise OutOfMemoryError("tried to allocate 1 GiB", row.num_tokens, chunk)
        return {"trained": sum(row.num_trained_tokens for row in rows)}


def take(memory: StepMemory, steps: Steps, warnings: list[Any]) -> dict[str, float]:
    return memory.step(steps, forests(0, 1), LossConfig(), 1e-3, 1024, warnings.append)


def test_the_length_is_remembered_for_later_jobs_and_each_is_told() -> None:
    memory, steps, first, second = StepMemory(), Steps(30), list[Any](), list[Any]()
    trained = sum(row.num_trained_tokens for row in forests(0, 1))
    assert take(memory, steps, first) == {"trained": trained}
    assert steps.taken[0] == [49, 49] and max(steps.taken[1]) <= 30 and len(steps.taken) == 2
    assert take(memory, steps, second) == {"trained": trained}
    assert len(steps.taken) == 3
    assert "tried to allocate 1 GiB" in first[0]["message"] and "an earlier step" in second[0]["message"]
    for [warning] in (first, second):
        counts = {"row_tokens": 49, "max_row_tokens": 24, "logprob_chunk_size": 512}
        assert (warning["kind"], warning["counts"]) == ("rows_split", counts)


def test_a_sequence_that_does_not_fit_fails_the_job_with_its_place() -> None:
    with pytest.raises(StageError, match=r"group 0, trajectory \d \(\d+ tokens\) alone: tried") as caught:
        take(StepMemory(), Steps(5), [])
    assert not caught.value.retryable and "max_model_len" in caught.value.remedy


def test_a_job_whose_learners_share_weights_begins_again_with_shorter_rows() -> None:
    """Such learners end when one has no memory. No attempt is counted, and the next one knows the length."""
    memory, warnings = StepMemory(), list[Any]()
    is_lost = False

    def step(rows: Sequence[PackedSequence], *_: Any) -> dict[str, float]:
        nonlocal is_lost
        if is_lost:
            raise LearnersLostError("They have just ended.")
        is_lost = True
        remote = ray.exceptions.RayTaskError("step", "", OutOfMemoryError("tried", rows[0].num_tokens, 1024))
        failed = stage_error("step", "a learner", remote)
        failed.__cause__ = remote
        assert isinstance(failed, StageError)
        shortage = shortage_behind(failed)
        assert shortage is not None
        raise shortage

    with pytest.raises(LearnersLostError):
        memory.step(step, forests(0), LossConfig(), 1e-3, 1024, warnings.append)
    assert len(warnings) == 1
    steps = Steps(30)
    take(memory, steps, [])
    assert max(steps.taken[0]) <= 30
    assert shortage_behind(StageError("step", "", "")) is None


def test_the_rank_that_ran_out_of_memory_is_believed() -> None:
    own, others = OutOfMemoryError("tried", 900, 64), OutOfMemoryError("another learner's memory was full")
    assert first_shortage([others, own, others]) is own
    assert first_shortage([{"loss/train": 1.0}, {}]) is None
