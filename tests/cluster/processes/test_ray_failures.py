"""Error messages about real actors that are killed, exit or raise."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import ray

from tandem.cluster.errors import StageError
from tandem.cluster.processes.ray_failures import stage_error

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers don't have the tests' folder


class Worker:
    def pid(self):
        return os.getpid()

    def work(self, begun):
        os.close(os.open(begun, os.O_CREAT | os.O_WRONLY))  # a C call, which adds no line to a traceback
        while True:
            time.sleep(0.1)  # short, because a signal just before a sleep doesn't interrupt it

    def fail(self):
        raise KeyError("token_ids")

    def exit(self):
        sys.exit(4)


def failure(ref):
    with pytest.raises(ray.exceptions.RayError) as error:
        ray.get(ref, timeout=120)
    told = stage_error("step", "a learner", error.value)
    assert isinstance(told, StageError), told
    return told


@pytest.fixture
def worker(ray_local):
    handle = ray.remote(Worker).options(num_cpus=0, max_restarts=0).remote()
    yield handle
    ray.kill(handle)


@pytest.mark.parametrize(
    "number, said",
    [
        (signal.SIGKILL, r"killed by signal 9 \(SIGKILL\)"),
        (signal.SIGTERM, r"ended by signal 15 \(SIGTERM\)"),
        (signal.SIGSEGV, r"ended by signal 11 \(SIGSEGV\) in test_ray_failures\.py:\d+"),
        (signal.SIGABRT, r"ended by signal 6 \(SIGABRT\) in test_ray_failures\.py:\d+"),
    ],
)
def test_a_signal_is_named(worker, tmp_path, number, said):
    pid, begun = ray.get(worker.pid.remote()), tmp_path / "begun"
    ref = worker.work.remote(str(begun))
    deadline = time.monotonic() + 300
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(pid, number)
    told = failure(ref)
    assert told.retryable
    assert re.search(said, told.cause), told.cause


def test_a_python_error_is_told_with_its_last_frames(worker):
    told = failure(worker.fail.remote())
    assert not told.retryable
    assert told.cause.startswith("a learner raised KeyError: 'token_ids' (test_ray_failures.py:")
    assert "in fail" in told.cause


def test_an_exit_code_is_told(worker):
    assert "exit code 4" in failure(worker.exit.remote()).cause


def test_an_error_in_the_constructor_is_told(ray_local):
    class Unable(Worker):
        def __init__(self):
            raise FileNotFoundError("model.safetensors")

    told = failure(ray.remote(Unable).options(num_cpus=0).remote().pid.remote())
    assert "a learner couldn't start: FileNotFoundError: model.safetensors" in told.cause


CLUSTER = """
import ray, threading, time
from ray.cluster_utils import Cluster
from tandem.cluster.processes.ray_failures import stage_error

@ray.remote(num_cpus=0, max_restarts=0)
class Worker:
    def __init__(self):
        self.begun = threading.Event()

    def wait_for_work(self):
        self.begun.wait()

    def work(self, memory):
        self.begun.set()
        self.memory = bytearray(memory)
        time.sleep(600)

def say(ref):
    try:
        ray.get(ref, timeout=200)
    except ray.exceptions.RayError as error:
        print(stage_error("step", "a learner", error))

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 << 20})
ray.init(cluster.address, log_to_driver=False)
other = cluster.add_node(num_cpus=0, resources={"other": 1}, object_store_memory=80 << 20)
worker = Worker.options(resources={"other": 1}, max_concurrency=2).remote()
ref = worker.work.remote(0)
ray.get(worker.wait_for_work.remote())
cluster.remove_node(other)
say(ref)
cramped = cluster.add_node(
    num_cpus=0, resources={"cramped": 1}, object_store_memory=80 << 20,
    env_vars={"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "100"},
)
say(Worker.options(resources={"cramped": 1}).remote().work.remote(1 << 20))
"""


def test_a_lost_node_and_a_node_out_of_memory_are_told_apart():
    """This runs in a separate process on a cluster of two nodes, because the tests' Ray has only one."""
    done = subprocess.run([sys.executable, "-c", CLUSTER], capture_output=True, text=True, timeout=600)
    told = [line for line in done.stdout.splitlines() if line.startswith("Stage")]
    assert len(told) == 2, done.stdout + done.stderr
    assert "was on a node that was lost" in told[0]
    assert "its node was running out of memory" in told[1]
