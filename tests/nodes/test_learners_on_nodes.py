"""Learners on a cluster of several nodes: placement, and jobs whose node dies or that lack a node."""

import json
import multiprocessing
import shutil

import pytest
from learner_driver import HOLD, STARTED, join, run_job
from ray_nodes import RayNodes, wait_for
from watched_run import accept_job, store_url

from tandem.serve.store.store import Store

NUM_GROUPS = 80  # a job of some seconds
JOB_S = 400.0  # a bound; on an idle machine less than a minute


@pytest.fixture(scope="module")
def nodes(tiny_model, tmp_path_factory):
    """A head, and three nodes with room for learners."""
    with RayNodes(tmp_path_factory.mktemp("ray")) as nodes:
        for _ in range(3):
            nodes.add(num_cpus=1)
        yield nodes


@pytest.fixture(scope="module")
def driver(nodes):
    """A process that has joined the cluster and runs the jobs."""
    with multiprocessing.get_context("spawn").Pool(1, join) as pool:
        yield pool


@pytest.fixture(scope="module")
def accepted(tiny_model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("accepted")
    accept_job(directory, NUM_GROUPS)
    return directory


@pytest.fixture(scope="module")
def start(driver, accepted, tmp_path_factory):
    """Starts a copy of the accepted job. Returns its directory and its future outcome. `hold`: see HOLD."""

    def start(hold=False, **learners):
        directory = tmp_path_factory.mktemp("run") / "copy"
        shutil.copytree(accepted, directory)
        if hold:
            (directory / HOLD).touch()
        return directory, driver.apply_async(run_job, (directory, {"placement": "STRICT_SPREAD", **learners}))

    return start


@pytest.fixture(scope="module")
def undisturbed(start):
    return start(count=2)[1].get(JOB_S)


def test_each_learner_runs_on_a_node_of_its_own(nodes, undisturbed):
    assert len(set(undisturbed.nodes)) == 2
    assert set(undisturbed.nodes) <= set(nodes.living()) - {nodes.head.node_id}
    assert undisturbed.broken_off == []


def test_a_job_that_loses_a_node_makes_the_same_version_on_the_others(nodes, start, undisturbed):
    """The lost node is that of rank 0, which hosts the rendezvous."""
    directory, outcome = start(count=2, hold=True)
    ranks = wait_for("the second gradient step", lambda: read_started(directory), JOB_S)
    nodes.kill(next(node for node in nodes.workers if node.node_id == ranks[0]))
    (directory / HOLD).unlink()
    outcome = outcome.get(JOB_S)
    [cause] = outcome.broken_off  # only one: no learner was placed on the dead node again
    assert "was lost" in cause
    assert len(set(outcome.nodes)) == 2
    assert set(outcome.nodes) <= set(nodes.living()) - {nodes.head.node_id}
    assert outcome.digest == undisturbed.digest


def test_a_job_that_lacks_nodes_reports_it_and_starts_when_one_joins(nodes, start):
    directory, outcome = start(count=3)
    store = Store(store_url(directory))
    said = wait_for("the reason why the job waits", lambda: store.jobs.page("default", 1)[0].waiting_for, JOB_S)
    assert said.startswith("the cluster has no room for 3 learners of CPU 0.5, GPU 0 each on nodes of their own")
    assert not outcome.ready()
    joined = nodes.add(num_cpus=1)
    outcome = outcome.get(JOB_S)
    assert joined.node_id in outcome.nodes
    assert len(set(outcome.nodes)) == 3
    assert outcome.broken_off == []
    assert store.jobs.page("default", 1)[0].waiting_for is None
    store.close()


def read_started(directory):
    """Return the nodes of the ranks, or an empty list before there are any."""
    file = directory / STARTED
    return json.loads(file.read_text()) if file.exists() else []
