"""Learner groups on a real Ray: two learners make the update of one, and failures are reported with their cause."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import ray
import torch
from coordinator_fakes import RecordingStore, make_coordinator, make_job, trajectory

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig, LogprobsConfig
from tandem.cluster.errors import LearnersLostError, StageError
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.shards import shard_by_tokens
from tandem.cluster.learners.training import Training
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.rl.checkpoints import read_checkpoint
from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.packing import PackedSequence
from tandem.rl.supervised.batch import build_supervised
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.supervised.rows import SupervisedRow
from tandem.rl.supervised.steps import supervised_steps


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


METADATA: dict[str, str | int] = {"base_model": "tandem/tiny"}


def base_config(count: int, **learners: Any) -> BaseModelConfig:
    settings = {"num_cpus": 0.5, "num_gpus": 0, "sequences_per_step": 3, **learners}
    return BaseModelConfig(name="tandem/tiny", path="builtin:tiny", learners=LearnersConfig(count=count, **settings))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def initial(artifacts: Artifacts) -> str:
    """The digest of version 0."""
    return ResolvedBaseModel(base_config(1)).write_initial_version(artifacts)


@pytest.fixture(scope="module")
def groups(ray_local: None, artifacts: Artifacts) -> Iterator[dict[int, LearnerGroup]]:
    """Groups of one and two learners. They start on first use, and again after a test that stopped them."""
    root = str(artifacts.checkpoints_dir.parent)
    groups = {count: LearnerGroup(base_config(count), root, DeadlinesConfig()) for count in (1, 2)}
    yield groups
    for learners in groups.values():
        learners.stop()


@pytest.fixture
def one(groups: dict[int, LearnerGroup], initial: str) -> Iterator[Training]:
    """A job's training from version 0 on a group of one learner."""
    with groups[1].training("a", 100) as training:
        training.load(initial)
        yield training


@pytest.fixture
def two(groups: dict[int, LearnerGroup], initial: str) -> Iterator[Training]:
    """The same on a group of two."""
    with groups[2].training("a", 100) as training:
        training.load(initial)
        yield training


def save(training: Training) -> str:
    training.finish()
    return training.save(METADATA)


def pid_of(training: Training, rank: int) -> int:
    return ray.get(training._group.workers[rank].__ray_call__.remote(lambda _: os.getpid()))


def test_two_learners_equal_one(one, two, artifacts, initial):
    rows = [row(40, seed) for seed in range(3)] + [row(64, seed) for seed in range(3, 6)]
    states = []
    for learners in (one, two):
        metrics = [learners.step(rows[i : i + 3], LossConfig(), 1e-3, 64) for i in (0, 3)]
        assert all(step.pop("time/step_trainer_s") > 0 for step in metrics)
        digest = save(learners)
        states.append((metrics, read_checkpoint(artifacts.checkpoints_dir / digest)))
        learners.load(initial)
        shutil.rmtree(artifacts.checkpoints_dir / digest)
        learners.load(digest)  # each learner still has this state in memory
        assert save(learners) == digest
    (one_metrics, one_state), (two_metrics, two_state) = states
    for mine, theirs in zip(one_metrics, two_metrics, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    for name, tensor in one_state.adapter.items():
        torch.testing.assert_close(tensor, two_state.adapter[name], atol=1e-5, rtol=0)
    moved = max(float(t.abs().max()) for name, t in one_state.adapter.items() if "lora_B" in name)
    assert moved > 1e-3


def test_two_learners_equal_one_in_supervised_training(one, two, artifacts):
    base = replace(ResolvedBaseModel(base_config(1)).text, max_model_len=600)
    question = {"role": "user", "content": "Which is the largest: 1, 2 or 3?"}
    answers = [{"role": "assistant", "content": f"The largest is {number}."} for number in range(7)]
    # Each fills a packed row of its own, so that both learners have work.
    rows = [(n, SupervisedRow(messages=[question, answer] * 12)) for n, answer in enumerate(answers, start=1)]
    batch = build_supervised(rows, base, SupervisedConfig(batch_size=4, learning_rate=[1e-3, 2e-3]))
    assert [len(step.rows) > 1 for step in batch.steps] == [True, True]
    runs = []
    for learners in (one, two):
        steps = list(supervised_steps(learners, batch))
        trace = learners.traces()()
        order = trace.ids.argsort()
        assert trace.ids[order].tolist() == list(range(sum(step.num_trainable_tokens for step in batch.steps)))
        assert len(learners.traces()().ids) == 0  # they are handed over once
        runs.append((steps, trace.logprobs[order], read_checkpoint(artifacts.checkpoints_dir / save(learners))))
    (mine, traced, state), (theirs, also_traced, other) = runs
    assert traced.tolist() == pytest.approx(also_traced.tolist(), abs=1e-4)
    for a, b in zip(mine, theirs, strict=True):
        assert [a[name] for name in ("loss", "grad_norm")] == pytest.approx([b["loss"], b["grad_norm"]], rel=1e-4)
    for name, tensor in state.adapter.items():
        torch.testing.assert_close(tensor, other.adapter[name], atol=1e-5, rtol=0)


@pytest.fixture
def job(artifacts: Artifacts, initial: str) -> ClaimedJob:
    """A job of seven rows with 15 trained tokens each, whose old and reference logprobs the learners compute."""
    rewarded = [{"trajectories": [trajectory(1.0, 100 + i, 11, 50), trajectory(0.0, 12, 13 + i)]} for i in range(21)]
    config = TrainingConfig(
        precalculate_logprobs=True, kl_penalty_coef=0.5, kl_penalty_source="current_learner", learning_rate=0.01,
        packed_sequence_length=48,
    )  # fmt: skip
    made = make_job(artifacts, rewarded, config=config, reference_digest=initial)
    return replace(made, version=PolicyVersion("model", 0, initial))


def run(job: ClaimedJob, learners: LearnerGroup, artifacts: Artifacts) -> list[Any]:
    """Return what the job has recorded in the store."""
    settings = learners._base.model_copy(update={"logprobs": LogprobsConfig(chunk_tokens=96)})
    store = RecordingStore(job)
    make_coordinator(ResolvedBaseModel(settings), store, artifacts, learners).run_next()
    return store.log


def test_the_number_of_learners_changes_no_step_of_so_many_tokens(groups, artifacts, job, monkeypatch):
    logs = []
    for count, group in groups.items():
        monkeypatch.setattr(group, "_base", base_config(count, sequences_per_step=None, tokens_per_step=20))
        logs.append(run(job, group, artifacts))
    for log in logs:
        started = log[0][1]
        assert (started["num_sequences"], started["num_gradient_steps"], started["sequences_per_step"]) == (7, 4, 2)
        assert [entry[0] for entry in log].count("gradient_step") == 4
    one, two = (read_checkpoint(artifacts.checkpoints_dir / log[-1][2]).adapter for log in logs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=0)


def test_learners_that_share_the_weights_make_the_same_versions(groups, artifacts, initial, job):
    """Bit by bit, with steps of three rows and fewer, and after a learner was killed."""
    together = LearnerGroup(base_config(2, shard=2), str(artifacts.checkpoints_dir.parent), DeadlinesConfig())
    try:
        expected, found = run(job, groups[2], artifacts), run(job, together, artifacts)
        assert (expected[-1][0], found[-1]) == ("complete", expected[-1])
        os.kill(ray.get(together.workers[1].__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
        assert run(job, together, artifacts)[-1][0] == "requeue"
        shutil.rmtree(artifacts.checkpoints_dir / found[-1][2])
        assert run(job, together, artifacts)[-1] == expected[-1]
        with together.training("b", 100) as training:
            training.load(initial, fresh_optimizer=True)  # the probe, too, needs both
            [score] = training.scorers(initial, 64)
            bad = replace(row(40), token_ids=row(40).token_ids + 10**6)
            for fails in (lambda: score([bad, row(40)], 300.0), lambda: training.step([row(40)], LossConfig(), 0, 64)):
                with pytest.raises(StageError, match="IndexError"):  # the ranks would continue at different layers
                    fails()
        assert not together.is_running
    finally:
        together.stop()


def test_two_jobs_take_turns_on_two_learners_and_one_whose_write_fails_does_not_disturb_the_other(
    two, groups, artifacts, initial
):
    """The ranks stay in step: both jobs make the versions that they make alone."""
    rows = [row(40, seed) for seed in range(6)]

    def train(training, index):
        training.step(rows[index : index + 3], LossConfig(), 1e-3, 64)

    with groups[2].training("alone", 100) as alone:
        two._turn.give_back()
        alone.load(initial)
        train(alone, 0), train(alone, 3)
        expected = save(alone)
    with groups[2].training("b", 10_000) as big, ThreadPoolExecutor(2) as pool:
        two.load(initial)
        train(two, 0)
        two._turn.give_back()
        big.load(initial)
        train(big, 0), big._turn.give_back()
        both = [pool.submit(train, training, 3) for training in (two, big)]
        for step in both:
            while not step.done():
                two._turn.give_back()  # a job gives the turn back at the end, or when another one is due
                big._turn.give_back()
                wait([step], 0.05)
            step.result()
        shutil.rmtree(artifacts.checkpoints_dir / expected)
        assert save(two) == expected
        shutil.rmtree(artifacts.checkpoints_dir / expected)
        (artifacts.checkpoints_dir / expected).write_text("in the way")
        try:
            with pytest.raises(StageError, match="checkpoint"):
                save(big)
        finally:
            (artifacts.checkpoints_dir / expected).unlink()
        assert groups[2].is_ready
        assert save(big) == expected


def test_a_learner_that_dies_in_the_step_of_one_job_costs_another_one_no_try(two, groups, initial):
    with groups[2].training("b", 100) as other:
        two._turn.give_back()
        other.load(initial)
        other.step([row(40)], LossConfig(), 1e-3, 64)
        other.finish()
        two._turn.hold(lambda: None)
        os.kill(pid_of(two, 1), signal.SIGKILL)
        with pytest.raises(StageError, match="a learner was killed by signal 9"):
            two.step([row(40)], LossConfig(), 1e-3, 64)
        with pytest.raises(LearnersLostError):
            other.save(METADATA)


def test_a_step_that_diverges_makes_no_version_and_the_learners_train_on_from_a_good_one(two, artifacts, initial):
    rows = [row(40, seed) for seed in range(3)]
    pids, checkpoints = [pid_of(two, rank) for rank in (0, 1)], set(artifacts.checkpoints_dir.iterdir())
    two.step(rows, LossConfig(), 1e10, 64)
    for stage, diverges in (
        ("checkpoint", lambda: save(two)),
        ("step", lambda: two.step(rows, LossConfig(), 1e-3, 64)),
    ):
        with pytest.raises(StageError, match="learning_rate") as caught:
            diverges()
        assert (caught.value.stage, caught.value.retryable) == (stage, False)
    assert set(artifacts.checkpoints_dir.iterdir()) == checkpoints
    two.load(initial)
    two.step(rows, LossConfig(), 1e-3, 64)
    save(two)
    assert [pid_of(two, rank) for rank in (0, 1)] == pids


def test_a_row_that_no_learner_can_score_ends_the_scoring(two, initial):
    """The scoring doesn't wait for its deadline."""
    bad = replace(row(40), token_ids=row(40).token_ids + 10**6)
    pool, began = LogprobPool(LogprobsConfig(), 1e-3, deadline_s=900), time.monotonic()
    with pytest.raises(StageError, match="IndexError"):
        pool.score([row(40), bad], two.scorers(initial, 64), [])
    assert time.monotonic() - began < 450


def test_a_killed_learner_ends_the_step_with_its_cause(two):
    os.kill(pid_of(two, 1), signal.SIGKILL)
    with pytest.raises(StageError, match="a learner was killed by signal 9") as error:
        two.step([row(40)], LossConfig(), 1e-3, 64)
    assert error.value.retryable
    assert not two._group.is_running


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_rank_ends_the_step_before_the_deadline_of_the_other(two, rank):
    """The step waits neither for its own deadline nor for that of the process group."""
    good, bad = row(40 if rank == 0 else 64), row(64 if rank == 0 else 40)  # the longer row goes to rank 0
    began = time.monotonic()
    with pytest.raises(StageError, match=r"a learner raised IndexError: .*\(\w+\.py:\d+ in") as error:
        two.step([good, replace(bad, token_ids=bad.token_ids + 10**6)], LossConfig(), 1e-3, 64)
    assert time.monotonic() - began < DeadlinesConfig().step_s / 2
    assert not error.value.retryable and not two._group.is_running


def test_a_stopped_learner_misses_the_deadline_instead_of_hanging(one, monkeypatch):
    pid = pid_of(one, 0)
    monkeypatch.setattr(one._group._actors, "_deadlines", DeadlinesConfig(step_s=1.0))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StageError, match=r"deadlines\.step_s") as error:
            one.step([row(40)], LossConfig(), 1e-3, 64)
        assert error.value.retryable
    finally:
        with suppress(ProcessLookupError):  # Ray has already killed it
            os.kill(pid, signal.SIGCONT)


def test_a_damaged_checkpoint_is_named_and_not_loaded(one, artifacts, initial):
    file = artifacts.checkpoints_dir / initial / "adapter_model.safetensors"
    whole = file.read_bytes()
    one.step([row(40)], LossConfig(), 1e-3, 64)  # the learner no longer holds the initial state
    file.write_bytes(whole[:-8])
    try:
        with pytest.raises(StageError, match=r"adapter_model\.safetensors"):
            one.load(initial)
    finally:
        file.write_bytes(whole)


def test_a_cluster_without_room_is_reported_with_the_missing_resources(ray_local, tmp_path):
    learners = LearnerGroup(base_config(1, num_cpus=10_000), str(tmp_path), DeadlinesConfig(start_learners_s=1.0))
    with pytest.raises(StageError, match="no room for 1 learners of CPU 10000"):
        learners.start()
    assert "no room" in learners.waiting_for
