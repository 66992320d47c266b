"""Runs on learner groups of a real Ray: a killed learner changes nothing, and two learners make the steps of one."""

import os
import signal

import pytest
import ray
import torch
from run_fakes import ADAM, CONFIG, CallFailedError, MemoryJournal, body, read_output, running

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import DeadlinesConfig, LearnersConfig, TinkerConfig
from tandem.cluster.learners.group import LearnerGroup
from tandem.rl.checkpoints import read_checkpoint

LIMITS = TinkerConfig(idle_s=0.1)
SAME = 1e-5
"""float32: the learners sum the gradients of their rows in another order."""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def initial(artifacts):
    return ResolvedBaseModel(CONFIG).write_initial_version(artifacts)


@pytest.fixture(scope="module")
def groups(ray_local, artifacts):
    """Groups of one and two learners, which start on first use."""
    found = {}
    for count in (1, 2):
        learners = LearnersConfig(count=count, num_cpus=0.5, num_gpus=0, device="cpu")
        base = CONFIG.model_copy(update={"learners": learners})
        found[count] = LearnerGroup(base, str(artifacts.checkpoints_dir.parent), DeadlinesConfig())
    yield found
    for group in found.values():
        group.stop()


@pytest.fixture
def sharing(ray_local, artifacts):
    """Two learners that hold the base weights together."""
    learners = LearnersConfig(count=2, shard=2, num_cpus=0.5, num_gpus=0, device="cpu")
    base = CONFIG.model_copy(update={"learners": learners})
    group = LearnerGroup(base, str(artifacts.checkpoints_dir.parent), DeadlinesConfig())
    yield group
    group.stop()


def train(group, artifacts, initial, between=lambda: None):
    """Return the digest after two steps of two calls each, and the logprobs of the first call."""
    journal = MemoryJournal(artifacts, initial)
    run = journal.add_run("run")
    with running(journal, group, artifacts, LIMITS):
        for step in range(2):
            for part in range(2):
                content = body(step * 10 + part, num_datums=12, num_tokens=100, loss="importance_sampling")
                journal.wait(run, journal.submit(run, "forward_backward", content))
            between()
            journal.submit(run, "optim_step", **ADAM | {"eps": 1e-6})
        save = journal.submit(run, "save_weights")
        journal.wait(run, save)
    return journal.saved[run, save].digest, read_output(journal.answers[run, 1])


def test_a_killed_learner_changes_nothing_and_two_equal_one(groups, artifacts, initial):
    digest, (logprobs, metrics) = train(groups[1], artifacts, initial)

    def kill():
        os.kill(ray.get(groups[1].workers[0].whereabouts.remote()).pid, signal.SIGKILL)

    assert train(groups[1], artifacts, initial, kill)[0] == digest
    groups[1].stop()
    by_two, (same, same_metrics) = train(groups[2], artifacts, initial)
    for one, two in zip(logprobs, same, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=SAME, atol=SAME)
    assert metrics == pytest.approx(same_metrics, rel=SAME)
    states = [read_checkpoint(artifacts.checkpoints_dir / name) for name in (digest, by_two)]
    for name, tensor in states[0].adapter.items():
        torch.testing.assert_close(tensor, states[1].adapter[name], rtol=0, atol=1e-4, msg=name)


def test_learners_that_share_the_weights_make_the_steps_of_two_that_do_not(groups, sharing, artifacts, initial):
    """Calls of one datum, too, for which one of the two has no row; and a call that neither can compute."""
    digest, (logprobs, _) = train(groups[2], artifacts, initial)
    found, (same, _) = train(sharing, artifacts, initial)
    assert found == digest
    assert [own.tolist() for own in same] == [own.tolist() for own in logprobs]
    journal = MemoryJournal(artifacts, initial)
    run = journal.add_run("run")
    with running(journal, sharing, artifacts, LIMITS):
        for kind in ("forward_backward", "forward"):
            journal.wait(run, journal.submit(run, kind, body(7, num_datums=1)))
        with pytest.raises(CallFailedError, match="ForwardBackwardRequest"):
            journal.wait(run, journal.submit(run, "forward_backward", b"no message"))
        with pytest.raises(CallFailedError, match="call 3 of its batch failed"):
            journal.wait(run, journal.submit(run, "optim_step", **ADAM))
        journal.wait(run, journal.submit(run, "forward_backward", body(8)))
        journal.wait(run, journal.submit(run, "optim_step", **ADAM))
