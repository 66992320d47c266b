"""The coordinator's offer of a version reaches every engine replica, through Serve, and waits for none that is lost."""

import os
import signal

import numpy as np
import pytest
import ray
from ray import serve

from tandem.cluster.errors import AdapterUnavailableError, VersionNotFiniteError
from tandem.serve.app.engines.handles import engine_check

REPORT = {"is_right": True, "max": 0.0, "mean": 0.0, "tolerance_max": 1.0, "tolerance_mean": 1.0, "answers_as": None}
FILES = {"adapter_model.safetensors": np.arange(300_000, dtype=np.uint8), "manifest.json": np.zeros(3, np.uint8)}


@ray.remote(num_cpus=0)
class Ranks:
    """Numbers the replicas, so that they can behave differently."""

    def __init__(self):
        self._next = 0

    def next(self):
        self._next += 1
        return self._next - 1


@serve.deployment(num_replicas=3, ray_actor_options={"num_cpus": 0}, graceful_shutdown_timeout_s=1)
class Replica:
    def __init__(self, ranks):
        self.rank = ray.get(ranks.next.remote())

    async def check_version(self, digest, files, ids):
        if files is not None:
            assert {name: bytes(data) for name, data in files.items()} == {n: bytes(d) for n, d in FILES.items()}
        if self.rank == 0:
            return REPORT
        if digest == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if digest == "stopped" and self.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        if digest == "not finite":
            raise VersionNotFiniteError(digest, "its logits aren't finite")
        raise AdapterUnavailableError("it isn't there")


@pytest.fixture
def check(ray_local):
    serve.start(proxy_location="Disabled")
    handle = serve.run(Replica.bind(Ranks.remote()), name="engines", route_prefix=None)
    yield engine_check(handle)
    serve.shutdown()


def test_each_replica_gets_the_files_and_has_an_answer_or_an_error_of_its_own(check):
    files = ray.put(FILES)
    for digest, error in (("not finite", VersionNotFiniteError), ("missing", AdapterUnavailableError)):
        answers = check(digest, files, 60.0)
        assert answers.count(REPORT) == 1
        assert sum(isinstance(answer, error) for answer in answers) == 2
    answers = check("stopped", files, 3.0)
    assert answers.count(REPORT) == 1, "a stopped replica takes no answer from the others"
    assert sum(isinstance(answer, TimeoutError) for answer in answers) == 1
    answers = check("killed", None, 3.0)
    assert answers.count(REPORT) == 1
