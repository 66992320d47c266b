"""The preparation of jobs in a real actor: usable results, errors with their place, and no hangs."""

import os
import signal
import sys
import threading
import time

import coordinator_fakes
import pytest
import ray
from coordinator_fakes import TOKENIZER, Base, make_job, trajectory
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.cluster.errors import ArtifactError, StageError
from tandem.cluster.jobs.preparation import Preparation, PreparationWorker
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError, TrajectoryError

for module in (coordinator_fakes, sys.modules[__name__]):  # Ray's workers don't have the tests' folder
    ray.cloudpickle.register_pickle_by_value(module)


class Faulty(Base):
    """A base model with bugs: for some jobs it raises an error, for others it never returns."""

    def check_groups(self, groups, config):
        if config.learning_rate == 0.5:
            raise ZeroDivisionError("no such tokens")
        if config.learning_rate == 0.25:
            time.sleep(1000)
        super().check_groups(groups, config)


POLICY = "team/project/agent"
BROKEN, ENDLESS = TrainingConfig(learning_rate=0.5), TrainingConfig(learning_rate=0.25)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def base():
    return Faulty(AutoTokenizer.from_pretrained(TOKENIZER))


@pytest.fixture(scope="module")
def preparation(ray_local, artifacts, base):
    preparation = Preparation({"base": base, "tiny": ResolvedBaseModel(TINY)}, artifacts, deadline_s=300)
    yield preparation
    preparation.stop()


def pid_of(preparation):
    return ray.get(preparation._running().handle.__ray_call__.remote(lambda _: os.getpid()))


def in_background(call):
    """Start a call in a thread. The list receives the error that it raises."""
    errors = []

    def run():
        try:
            call()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, errors


def test_version_0_is_the_one_made_here(preparation, artifacts, tmp_path):
    digest = preparation.initial_version("tiny")
    assert artifacts.pull_checkpoint(digest).is_dir()
    assert digest == ResolvedBaseModel(TINY).write_initial_version(Artifacts(str(tmp_path)))


def test_a_batch_from_the_actor_equals_one_made_here_and_its_tensors_can_be_changed(preparation, artifacts, base):
    job = make_job(artifacts)
    batch = preparation.batch("base", job)
    worker = PreparationWorker({"base": base}, artifacts)
    local = worker.batch("base", job)
    assert batch.metrics() == local.metrics() and batch.sampled_versions == local.sampled_versions
    for row, expected in zip(batch.sequences, local.sequences, strict=True):
        assert row.token_ids.tolist() == expected.token_ids.tolist()
        row.advantages.mul_(0)


def test_errors_of_a_payload_keep_their_type_and_place(preparation, artifacts):
    groups = [{"trajectories": [trajectory(1.0, 10), trajectory(0.0, 999_999)]}]
    with pytest.raises(TrajectoryError) as error:
        preparation.check("base", make_job(artifacts, groups).payload_key, TrainingConfig(), POLICY)
    place = ("trajectory_groups", 0, "trajectories", 1, "messages_and_choices", 1)
    assert error.value.location[: len(place)] == place
    with pytest.raises(ConfigError) as error:
        preparation.check("base", make_job(artifacts).payload_key, TrainingConfig(packed_sequence_length=4096), POLICY)
    assert error.value.field == "packed_sequence_length"
    with pytest.raises(ArtifactError, match="payloads/none"):
        preparation.check("base", "payloads/none", TrainingConfig(), POLICY)


def test_a_bug_is_reported_with_its_place(preparation, artifacts):
    with pytest.raises(StageError, match=r"ZeroDivisionError: no such tokens \(test_preparation\.py:\d+") as error:
        preparation.check("base", make_job(artifacts).payload_key, BROKEN, POLICY)
    assert error.value.stage == "prepare" and not error.value.retryable


def test_a_killed_worker_is_reported_and_replaced(preparation, artifacts):
    key = make_job(artifacts).payload_key
    pid = pid_of(preparation)
    begun = threading.Event()
    thread, errors = in_background(lambda: preparation.check("base", key, ENDLESS, POLICY, on_wait=begun.set))
    assert begun.wait(60)
    os.kill(pid, signal.SIGKILL)
    thread.join(timeout=120)
    [error] = errors
    assert isinstance(error, StageError) and error.retryable and "signal 9" in str(error)
    preparation.check("base", key, TrainingConfig(), POLICY)
    assert pid_of(preparation) != pid


def test_a_hanging_worker_is_ended_at_the_deadline_and_replaced(preparation, artifacts, monkeypatch):
    key = make_job(artifacts).payload_key
    pid = pid_of(preparation)
    os.kill(pid, signal.SIGSTOP)
    with monkeypatch.context() as context, pytest.raises(StageError, match=r"deadlines\.prepare_s") as error:
        context.setattr(preparation, "_deadline_s", 1.0)
        preparation.check("base", key, TrainingConfig(), POLICY)
    assert error.value.retryable
    deadline = time.monotonic() + 120
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline, "the stopped process still exists"
        time.sleep(0.1)
    preparation.check("base", key, TrainingConfig(), POLICY)


def test_abandoning_one_payload_does_not_fail_another(preparation, artifacts):
    key = make_job(artifacts).payload_key
    pid_of(preparation)
    first, begun, other_begun = preparation._actor, threading.Event(), threading.Event()

    def on_wait():
        begun.set()
        if other_begun.is_set():
            raise KeyError("abandoned")

    def other_on_wait():
        if begun.is_set():
            other_begun.set()
        if preparation._actor not in (None, first):
            raise TimeoutError("enough: it runs again")

    thread, errors = in_background(lambda: preparation.check("base", key, ENDLESS, POLICY, on_wait=on_wait))
    other, other_errors = in_background(lambda: preparation.check("base", key, ENDLESS, POLICY, on_wait=other_on_wait))
    thread.join(timeout=120)
    other.join(timeout=120)
    assert [type(error) for error in errors + other_errors] == [KeyError, TimeoutError]


def test_a_warm_up_runs_in_the_background_and_may_fail(preparation, artifacts):
    pid = pid_of(preparation)
    os.kill(pid, signal.SIGSTOP)
    try:
        for model in ("base", "there is no such model"):
            thread, errors = in_background(lambda model=model: preparation.warm_up(model))
            thread.join(timeout=60)
            assert not thread.is_alive() and errors == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert preparation.batch("base", make_job(artifacts)).sequences


def test_a_model_is_warmed_up_once(artifacts, base, monkeypatch):
    seen = []
    monkeypatch.setattr(Faulty, "build_batch", lambda self, groups, config, seed: seen.append(list(groups)))
    monkeypatch.setattr(Faulty, "check_groups", lambda self, groups, config: seen.append(list(groups)))
    worker = PreparationWorker({"base": base}, artifacts)
    for _ in range(2):
        worker.warm_up("base")
        worker.check("base", make_job(artifacts).payload_key, TrainingConfig(), POLICY)
    assert [len(groups) for groups in seen] == [0, 1, 1]
