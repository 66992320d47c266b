import asyncio
from dataclasses import dataclass, field

import pytest
from ray.serve._private.common import DeploymentStatus, DeploymentStatusTrigger, ReplicaState
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from tandem.serve.app.engines import health as engine_health
from tandem.serve.app.engines.health import EngineHealth, deployment_fault

BASE = "tandem/tiny"
NO_ROOM = (  # Serve's message for an engine with 3 CPUs and half a GPU
    "Deployment 'engine' in application 'tandem' has 1 replicas that have taken more than 30s to be scheduled. This "
    "may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources "
    'required for each replica: {"CPU": 3.0, "GPU": 0.5}, total resources available: {"CPU": 1.0}. Use `ray status` '
    "for more details."
)
NO_BUNDLE = (  # the same if the engine shares its GPU with a learner
    NO_ROOM.replace('{"CPU": 3.0, "GPU": 0.5}', '[{"CPU": 4.0, "GPU": 1.0}]').replace('{"CPU": 1.0}', "{}")
)


def deployment(status=DeploymentStatus.HEALTHY, message="", **num_replicas):
    states = {ReplicaState[state]: num for state, num in num_replicas.items()}
    return DeploymentStatusOverview(status, DeploymentStatusTrigger.UNSPECIFIED, states, message)


@pytest.mark.parametrize("state", ["RUNNING", "RECOVERING", "PENDING_MIGRATION"])
def test_enough_replicas_are_no_fault(state):
    assert deployment_fault(deployment(**{state: 2}), 2) is None


@pytest.mark.parametrize(
    ("found", "num_replicas", "words"),
    [
        (None, 1, ["completions wait for it", "hasn't started it"]),
        (deployment(DeploymentStatus.UPDATING, STARTING=1, STOPPING=1), 1, ["completions wait for it", "is starting"]),
        (deployment(DeploymentStatus.UPDATING, NO_ROOM, STARTING=1), 1, ["3 CPU, 0.5 GPU", "1 CPU free"]),
        (deployment(DeploymentStatus.UPDATING, NO_BUNDLE, STARTING=1), 1, ["4 CPU, 1 GPU on one node, which no node"]),
        (deployment(DeploymentStatus.DEPLOY_FAILED, "Traceback: /secret"), 1, ["completions wait for it", "log"]),
        (deployment(RUNNING=1, STARTING=1), 2, ["1 of 2 engines", "is starting"]),
        (deployment(STARTING=2), 2, ["0 of 2 engines", "completions wait for one"]),
    ],
)
def test_missing_replicas_are_described_without_details(found, num_replicas, words):
    fault = deployment_fault(found, num_replicas)
    assert all(word in str(fault) for word in words)
    assert "secret" not in str(fault)
    assert fault.completions_wait == ("completions wait" in str(fault))


@dataclass
class Handle:
    """A deployment's handle with one method."""

    answer: Exception | float = 0.0
    """An error, or the seconds before the answer."""
    digests: list[str] = field(default_factory=list)
    deployment_name: str = "engine"
    num_asked: int = 0
    cancelled: int = field(default=0)

    @property
    def not_finite(self):
        return self

    def remote(self):
        self.num_asked += 1
        return self

    def cancel(self):
        self.cancelled += 1

    async def _wait(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        await asyncio.sleep(self.answer)
        return self.digests

    def __await__(self):
        return self._wait().__await__()


@pytest.fixture
def health(monkeypatch):
    """A function that makes an EngineHealth for a handle. Serve always reports the engine as healthy."""
    application = ApplicationStatusOverview(ApplicationStatus.RUNNING, "", 0.0, {"engine": deployment(RUNNING=1)})
    monkeypatch.setattr(engine_health, "application_status", {"tandem": application}.get)
    monkeypatch.setattr(engine_health, "ANSWER_S", 0.05)
    return lambda handle: EngineHealth("tandem", {BASE: handle}, {BASE: 1})


def test_an_answering_engine_has_no_fault(health):
    assert asyncio.run(health(Handle()).faults()) == {}


def test_a_dead_engine_is_reported_before_serve_knows(health):
    faults = asyncio.run(health(Handle(RuntimeError("the core died: /secret"))).faults())
    assert "died" in str(faults[BASE]) and "secret" not in str(faults[BASE])
    assert faults[BASE].completions_wait


@pytest.mark.parametrize("num_versions", [1, 5, 6, 60])
def test_versions_that_an_engine_rejects_are_named_and_nobody_else_waits(health, num_versions):
    digests = [f"{k:064x}"[::-1] for k in range(num_versions)]
    fault = asyncio.run(health(Handle(digests=digests)).faults())[BASE]
    assert [digest[:12] in str(fault) for digest in digests] == [k < 5 for k in range(num_versions)]
    assert not fault.completions_wait


def test_a_hanging_engine_is_reported_and_not_waited_for(health):
    handle = Handle(60.0)
    assert "doesn't answer" in str(asyncio.run(health(handle).faults())[BASE])
    assert handle.cancelled == 1


def test_frequent_callers_share_one_check(health, monkeypatch):
    handle = Handle()
    asked = health(handle)
    monkeypatch.setattr(engine_health, "MAX_AGE_S", 60.0)

    async def poll():
        await asyncio.gather(*(asked.faults() for _ in range(10)))
        await asked.faults()
        assert handle.num_asked == 1
        monkeypatch.setattr(engine_health, "MAX_AGE_S", -1.0)
        await asked.faults()
        assert handle.num_asked == 2

    asyncio.run(poll())
