"""Which learners have stalled, and a real group one of whose learners hangs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import ray
from faulty_learners import faulty_group, forests

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import DeadlinesConfig
from tandem.cluster.errors import StageError
from tandem.cluster.learners.failures.progress import Rank, description, stalled
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.run_training import RunTraining
from tandem.rl.config import LossConfig
from tandem.rl.gradient_step.progress import UPDATE, Position, Progress
from tandem.rl.packing import PackedSequence
from tandem.rl.settings import AdamStep

ROW = Position(mark=9, work="forward and backward", row=4, num_rows=8, row_tokens=1000, num_done=20, token_s=0.001)
WAITING = Position(mark=9, work=UPDATE, num_done=20, token_s=0.001)


def rank(number: int, position: Position | None, changed_at: float, is_new: bool = False) -> Rank:
    return Rank(number, changed_at, changed_at, position, is_new)


def numbers(ranks: list[Rank], now: float, quiet_s: float = 60.0) -> list[int]:
    return [found.number for found in stalled(ranks, now, quiet_s)]


def test_a_row_may_take_a_minute_or_ten_times_its_usual_time() -> None:
    assert numbers([rank(0, ROW, 0.0)], 59.0) == []
    assert numbers([rank(0, ROW, 0.0)], 61.0) == [0]
    long = replace(ROW, row_tokens=16_000)  # usually 16 s
    assert numbers([rank(0, long, 0.0)], 159.0) == []
    assert numbers([rank(0, long, 0.0)], 161.0) == [0]
    slower = rank(1, replace(ROW, token_s=0.002), 150.0)  # the pace is that of the slower learner
    assert numbers([rank(0, long, 0.0), slower], 161.0) == []


def test_the_first_rows_and_the_first_step_may_take_longer() -> None:
    compiling = replace(ROW, num_done=2, token_s=0.0)
    assert numbers([rank(0, compiling, 0.0)], 599.0) == []
    assert numbers([rank(0, compiling, 0.0)], 601.0) == [0]
    for position in (None, WAITING):
        assert numbers([rank(0, position, 0.0, is_new=True)], 599.0) == []
        assert numbers([rank(0, position, 0.0, is_new=True)], 601.0) == [0]
        assert numbers([rank(0, position, 0.0)], 61.0) == [0]


def test_a_learner_that_waits_for_the_others_is_not_the_culprit() -> None:
    assert numbers([rank(0, WAITING, 0.0), rank(1, ROW, 300.0)], 310.0) == []
    assert numbers([rank(0, WAITING, 0.0), rank(1, ROW, 300.0)], 361.0) == [1]
    assert numbers([rank(0, WAITING, 0.0), rank(1, WAITING, 300.0)], 310.0) == []
    assert numbers([rank(0, WAITING, 0.0), rank(1, WAITING, 300.0)], 361.0) == [0, 1]
    assert numbers([], 361.0) == []


def test_a_learner_that_waited_has_its_time_from_the_end_of_the_last_one() -> None:
    last = replace(rank(1, ROW, 300.0), is_done=True)
    assert numbers([rank(0, WAITING, 0.0), last], 310.0) == []
    assert numbers([rank(0, WAITING, 0.0), last], 361.0) == [0]


def test_the_place_is_described() -> None:
    said = description(rank(0, ROW, 10.0), 80.0, 60.0)
    assert "row 5 of 8 (1000 tokens, forward and backward) for 70 s" in said and "hasn't answered for 70 s" in said
    answering = Rank(0, 10.0, 79.0, WAITING)
    assert "answered" not in description(answering, 80.0, 60.0) and UPDATE in description(answering, 80.0, 60.0)


def test_every_row_is_progress() -> None:
    progress, rows, seen = Progress(), forests(0, 1), list[Position]()
    for _ in progress.over(rows, "scoring"):
        seen.append(progress.position)
    progress.enter(UPDATE)
    seen.append(progress.position)
    progress.enter("")
    seen.append(progress.position)
    assert [(at.work, at.row, at.num_rows, at.row_tokens, at.num_done) for at in seen] == [
        ("scoring", 0, 2, 49, 0), ("scoring", 1, 2, 49, 1), (UPDATE, 0, 0, 0, 2), ("", 0, 0, 0, 2),
    ]  # fmt: skip
    assert len({at.mark for at in seen}) == 4 and seen[-1].token_s > 0


# Real learners


QUIET_S = 3.0


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def group(ray_local: None, artifacts: Artifacts) -> Iterator[LearnerGroup]:
    with pytest.MonkeyPatch.context() as patch:
        deadlines = DeadlinesConfig(step_progress_s=QUIET_S, step_s=300)
        group = faulty_group(patch, str(artifacts.checkpoints_dir.parent), 2, deadlines)
        yield group
        group.stop()


@pytest.fixture
def training(group: LearnerGroup, artifacts: Artifacts) -> Iterator[Any]:
    with group.training("a-job/2", 100) as training:
        training.load(ResolvedBaseModel(group._base).write_initial_version(artifacts))
        yield training


def step(training: Any, rows: list[PackedSequence]) -> None:
    training.step(rows, LossConfig(), 1e-4, 256)


def test_a_slow_step_is_not_ended_and_a_hanging_one_is_with_its_stacks(
    group: LearnerGroup, training: Any, artifacts: Artifacts
) -> None:
    rows = forests(*range(8))
    ray.get(group.workers[1].sleep_in_rows.remote(1.3 * QUIET_S))
    step(training, rows)  # a first row takes long
    ray.get(group.workers[1].sleep_in_rows.remote(*[QUIET_S / 3] * 4))
    step(training, rows)  # as long in all, but each row is progress
    ray.get(group.workers[1].sleep_in_rows.remote(0, 3600))
    with pytest.raises(
        StageError, match=r"learner 1 \(process \d+ on node \S+\) has been in row 2 of 4 \(49 tokens"
    ) as caught:
        step(training, rows)
    assert caught.value.retryable and caught.value.stage == "step" and not group.is_running
    [name] = artifacts.list_job_artifacts("a-job")
    assert f"artifact {name} of job a-job" in str(caught.value) and "attempt_2" in name
    stacks = artifacts.read_blob(job_artifact_key("a-job", name)).decode()
    assert "faulty_learners.py" in stacks and "in optim_step" in stacks  # of learner 1, and of 0, which waits for it


def test_a_stopped_process_is_named_and_said_not_to_answer(
    group: LearnerGroup, training: Any, artifacts: Artifacts
) -> None:
    rows = forests(0, 1)
    step(training, rows)
    pid = ray.get(group.workers[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StageError, match=rf"learner 0 \(process {pid} on .* hasn't answered") as caught:
            step(training, rows)
        assert caught.value.retryable
    finally:
        with suppress(ProcessLookupError):  # Ray has already killed it
            os.kill(pid, signal.SIGCONT)
    stacks = artifacts.read_blob(job_artifact_key("a-job", "stacks_of_attempt_2.txt")).decode()
    assert "Its state is T (stopped)" in stacks and "doesn't answer" in stacks


def test_a_call_of_a_client_that_stalls_leaves_its_stacks_with_its_model(
    group: LearnerGroup, artifacts: Artifacts
) -> None:
    training = RunTraining(group, "run", "a-model")
    training.open(ResolvedBaseModel(group._base).write_initial_version(artifacts))
    training.apply_adam(AdamStep(learning_rate=1e-3))
    pid = ray.get(group.workers[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StageError, match="no progress") as caught:
            training.apply_adam(AdamStep(learning_rate=1e-3))
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    [name] = artifacts.list_job_artifacts("a-model")
    assert f"artifact {name} of model a-model" in str(caught.value)
    assert "Its state is T (stopped)" in artifacts.read_blob(job_artifact_key("a-model", name)).decode()
