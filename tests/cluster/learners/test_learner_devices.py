"""Learners of a group compare their GPUs before they connect."""

import sys
import threading
from datetime import timedelta

import pytest
import ray
import torch

from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig
from tandem.cluster.errors import LearnerDevicesError, StageError
from tandem.cluster.learners import actors
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.learners.places.devices import RankDevice, collision, compare_devices, learner_device
from tandem.cluster.learners.rendezvous import init_method, meet
from tandem.cluster.learners.worker import LearnerWorker
from tandem.cluster.processes.held_ports import hold_port

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers don't have the tests' folder
TIMEOUT = timedelta(seconds=120)


def test_ranks_on_one_gpu_are_named_with_node_and_gpu():
    devices = [
        RankDevice("n1", "GPU-a"),
        RankDevice("n1", "GPU-b"),
        RankDevice("n2", "GPU-a"),
        RankDevice("n1", "GPU-b"),
    ]
    said = collision(devices)
    assert said is not None and all(part in said for part in ("learners 1 and 3", "GPU-b", "node n1"))
    assert collision(devices[:3]) is None  # equal ids on two nodes are two GPUs


def test_ranks_on_cpus_share_a_node_but_none_beside_a_gpu():
    assert collision([RankDevice("n1", None)] * 3) is None
    said = collision([RankDevice("n1", "GPU-a"), RankDevice("n2", None)])
    assert said is not None and "learner 1 computes on a CPU of node n2, but learner 0 on a GPU" in said


@pytest.mark.parametrize(("gpus", "collide"), [(("GPU-a", "GPU-a"), True), (("GPU-a", "GPU-b"), False)])
def test_every_rank_learns_it_at_the_rendezvous(gpus, collide):
    raised, held = {}, hold_port("127.0.0.1")
    address = init_method(held)

    def join(rank, held):
        store = meet(address, 2, TIMEOUT, held)
        try:
            compare_devices(store, rank, 2, RankDevice("n1", gpus[rank]))
            raised[rank] = None
        except LearnerDevicesError as error:
            raised[rank] = str(error)
        both.wait(120)  # the store ends with the last rank

    both = threading.Barrier(2)
    other = threading.Thread(target=join, args=(1, None))
    other.start()
    join(0, held)
    other.join()
    assert raised[0] == raised[1]
    assert (raised[0] is not None) == collide


class OnOneGpu(LearnerWorker):
    """A learner on a CPU that takes itself for one on a GPU."""

    def _own_device(self, device):
        return RankDevice(ray.get_runtime_context().get_node_id(), "GPU-8a3c")


def test_a_group_on_one_gpu_is_refused_and_not_tried_again(ray_local, monkeypatch, tmp_path):
    monkeypatch.setattr(actors, "LearnerWorker", OnOneGpu)
    learners = LearnersConfig(count=2, num_cpus=0.5, num_gpus=0)
    base = BaseModelConfig(name="tandem/tiny", path="builtin:tiny", learners=learners)
    two = LearnerGroup(base, str(tmp_path), DeadlinesConfig())
    with pytest.raises(StageError) as error:
        two.start()
    node = ray.get_runtime_context().get_node_id()
    assert all(part in str(error.value) for part in ("learners 0 and 1", "GPU-8a3c", node))
    assert not error.value.retryable and not two.is_running


def test_outside_an_actor_torch_decides():
    expected = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    assert learner_device("auto") == expected
    assert learner_device("cpu") == torch.device("cpu")
