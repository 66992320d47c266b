"""Learners and engines on GPUs that Ray believes to have: who gets which, in Ray Serve and on several nodes."""

import multiprocessing
from collections import Counter

import gpu_driver
import pytest
from ray_nodes import RayNodes

PLACED_S = 300.0  # a bound; on an idle machine a few seconds


@pytest.fixture(scope="module")
def nodes(tiny_model, tmp_path_factory):
    """A head, and nodes of three GPUs and of one."""
    with RayNodes(tmp_path_factory.mktemp("ray")) as nodes:
        nodes.add(num_cpus=4, num_gpus=3)
        nodes.add(num_cpus=4, num_gpus=1)
        yield nodes


@pytest.fixture(scope="module")
def call(nodes):
    """Calls a function of `gpu_driver` in a process that has joined the cluster."""
    with multiprocessing.get_context("spawn").Pool(1, gpu_driver.join) as pool:
        yield lambda function, *arguments: pool.apply_async(function, arguments).get(PLACED_S)


def test_four_learners_and_two_engines_on_four_gpus(call, tmp_path):
    learners, engines = call(gpu_driver.place_all, tmp_path, 4, 2)
    assert all(len(actor.gpus) == 1 and actor.visible == actor.gpus[0] for actor in [*learners, *engines])
    of_learners = Counter((actor.node, *actor.gpus) for actor in learners)
    of_engines = Counter((actor.node, *actor.gpus) for actor in engines)
    assert len(of_learners) == 4 and len(of_engines) == 2, "no learner shares with a learner, nor an engine with one"


def test_learners_follow_an_engine_that_is_replaced(call, tmp_path):
    causes, [before, after] = call(gpu_driver.lose_an_engine, tmp_path)
    for learners, [engine] in (before, after):
        used = [(actor.node, *actor.gpus) for actor in learners]
        assert len(set(used)) == 2 and (engine.node, *engine.gpus) in used
    [cause] = causes
    assert "engine" in cause and "GPU" in cause


def test_an_actor_without_gpus_sees_none(call):
    assert call(gpu_driver.visible_devices, 0)["after"] == ""
    one = call(gpu_driver.visible_devices, 1)
    assert one["after"] == one["before"] and one["after"] in ("0", "1", "2")
