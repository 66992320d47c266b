"""Learner groups on a real Ray: two learners make the update of one, and every failure ends with its cause."""

import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig, LogprobsConfig
from tandem.cluster.errors import StageError
from tandem.cluster.learners.group import LearnerGroup, shard_by_tokens
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.rl.checkpoints import read_checkpoint
from tandem.rl.config import LossConfig
from tandem.rl.packing import PackedSequence


def row(num_tokens: int, seed: int = 0) -> PackedSequence:
    generator = torch.Generator().manual_seed(seed)
    zeros = torch.zeros(num_tokens, dtype=torch.int64)
    trained = torch.arange(num_tokens) >= num_tokens // 2
    return PackedSequence(
        token_ids=torch.randint(5, 200, (num_tokens,), generator=generator),
        positions=torch.arange(num_tokens),
        segment_ids=zeros,
        parent_ids=zeros,
        loss_mask=trained,
        sampling_logprobs=torch.where(trained, -3.0, float("nan")),
        advantages=torch.where(trained, 1.0 - 2.0 * (seed % 2), 0.0),
        weights=trained.float(),
    )


def test_shards_are_balanced_by_tokens_and_complete():
    rows = [row(n) for n in (10, 70, 30, 40, 50)]
    shards = shard_by_tokens(rows, 2)
    assert [[r.num_tokens for r in shard] for shard in shards] == [[70, 30], [50, 40, 10]]
    assert shard_by_tokens(rows[:1], 3) == [[rows[0]], [], []]


def group(artifacts_root, count, **deadlines):
    base = BaseModelConfig(
        name="tandem/tiny",
        path="builtin:tiny",
        learners=LearnersConfig(count=count, num_cpus=0.5, num_gpus=0, sequences_per_step=3),
    )
    return base, LearnerGroup(base, str(artifacts_root), DeadlinesConfig(**deadlines))


@pytest.fixture
def start(ray_local, tmp_path):
    groups = []

    def start(count, **deadlines):
        base, learners = group(tmp_path, count, **deadlines)
        groups.append(learners)
        learners.load(ResolvedBaseModel(base).write_initial_version(Artifacts(str(tmp_path))))
        return learners

    yield start
    for learners in groups:
        learners.stop()


def test_two_learners_equal_one(start, tmp_path):
    rows = [row(40, seed) for seed in range(3)] + [row(64, seed) for seed in range(3, 6)]
    states = []
    for count in (1, 2):
        learners = start(count)
        metrics = [learners.step(rows[i : i + 3], LossConfig(), 1e-3, 64) for i in (0, 3)]
        digest = learners.save({"base_model": "tandem/tiny"})
        states.append((metrics, read_checkpoint(tmp_path / "checkpoints" / digest)))
        learners.load(ResolvedBaseModel(group(tmp_path, count)[0]).write_initial_version(Artifacts(str(tmp_path))))
        shutil.rmtree(tmp_path / "checkpoints" / digest)
        learners.load(digest)  # which each of them remembers
        assert learners.save({"base_model": "tandem/tiny"}) == digest
        learners.stop()
    (one_metrics, one), (two_metrics, two) = states
    for mine, theirs in zip(one_metrics, two_metrics, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for name, tensor in one.adapter.items():
        torch.testing.assert_close(tensor, two.adapter[name], atol=1e-5, rtol=0)
    moved = max(float(t.abs().max()) for name, t in one.adapter.items() if "lora_B" in name)
    assert moved > 1e-3


def test_a_killed_learner_ends_the_step_with_its_cause_and_the_group_starts_again(start):
    learners = start(2)
    import ray

    pid = ray.get(learners._workers[1].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(StageError, match="a learner was killed by signal 9") as error:
        learners.step([row(40)], LossConfig(), 1e-3, 64)
    assert error.value.retryable
    assert not learners.is_running


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_the_step_at_once_though_the_other_waits_for_it(start, rank):
    """Neither waits for the step's deadline, nor for the process group's."""
    learners = start(2)
    good, bad = row(40 if rank == 0 else 64), row(64 if rank == 0 else 40)  # the longer one goes to rank 0
    began = time.monotonic()
    with pytest.raises(StageError, match=r"a learner raised IndexError: .*\(\w+\.py:\d+ in") as error:
        learners.step([good, replace(bad, token_ids=bad.token_ids + 10**6)], LossConfig(), 1e-3, 64)
    assert time.monotonic() - began < 120
    assert not error.value.retryable and not learners.is_running


def test_a_row_that_no_learner_can_score_ends_the_scoring_at_once(start):
    learners = start(2)
    [digest] = {learners._digest}
    bad = replace(row(40), token_ids=row(40).token_ids + 10**6)
    pool, began = LogprobPool(LogprobsConfig(), 1e-3, deadline_s=300), time.monotonic()
    with pytest.raises(StageError, match="IndexError"):
        pool.score([row(40), bad], learners.scorers(digest, 64), [])
    assert time.monotonic() - began < 120


def test_a_stopped_learner_misses_the_deadline_instead_of_hanging(start):
    learners = start(1, step_s=1.0)
    import ray

    pid = ray.get(learners._workers[0].__ray_call__.remote(lambda _: os.getpid()))
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(StageError, match=r"deadlines\.step_s") as error:
            learners.step([row(40)], LossConfig(), 1e-3, 64)
        assert error.value.retryable
        assert time.monotonic() - began < 60
    finally:
        with suppress(ProcessLookupError):  # Ray has killed it already
            os.kill(pid, signal.SIGCONT)


def test_a_damaged_checkpoint_is_named_and_not_loaded(start, tmp_path):
    learners = start(1)
    [digest] = [d.name for d in (tmp_path / "checkpoints").iterdir()]
    file = tmp_path / "checkpoints" / digest / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    learners.step([row(40)], LossConfig(), 1e-3, 64)  # now they hold something else
    with pytest.raises(StageError, match=r"adapter_model\.safetensors"):
        learners.load(digest)


def test_no_room_for_the_learners_says_what_is_missing(ray_local, tmp_path):
    base = BaseModelConfig(name="m", path="builtin:tiny", learners=LearnersConfig(count=1, num_cpus=10_000, num_gpus=0))
    learners = LearnerGroup(base, str(tmp_path), DeadlinesConfig(start_learners_s=1.0))
    with pytest.raises(StageError, match="no room for 1 learners of CPU 10000"):
        learners.start()
    assert "no room" in learners.waiting_for
