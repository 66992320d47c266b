import asyncio
from dataclasses import dataclass, field

import pytest
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
)

from tandem.serve.app import engine_health
from tandem.serve.app.engine_health import EngineHealth, deployment_fault

BASE = "tandem/tiny"
NO_ROOM = (  # Serve's words, for an engine of 3 CPUs and half a GPU
    "Deployment 'engine' in application 'tandem' has 1 replicas that have taken more than 30s to be scheduled. This "
    "may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. Resources "
    'required for each replica: {"CPU": 3.0, "GPU": 0.5}, total resources available: {"CPU": 1.0}. Use `ray status` '
    "for more details."
)


def deployment(status=DeploymentStatus.HEALTHY, message="", **num_replicas):
    states = {ReplicaState[state]: num for state, num in num_replicas.items()}
    return DeploymentStatusOverview(status, DeploymentStatusTrigger.UNSPECIFIED, states, message)


@pytest.mark.parametrize("state", ["RUNNING", "RECOVERING", "PENDING_MIGRATION"])
def test_enough_replicas_are_no_fault(state):
    assert deployment_fault(deployment(**{state: 2}), 2) is None


@pytest.mark.parametrize(
    ("found", "num_replicas", "said"),
    [
        (None, 1, "its engine isn't running; completions wait for it; Ray Serve hasn't begun to start it."),
        (
            deployment(DeploymentStatus.UPDATING, STARTING=1, STOPPING=1),
            1,
            "its engine isn't running; completions wait for it; it is starting.",
        ),
        (
            deployment(DeploymentStatus.UPDATING, NO_ROOM, STARTING=1),
            1,
            "its engine isn't running; completions wait for it; one needs 3 CPU, 0.5 GPU, and the cluster has 1 CPU "
            "free: add nodes, or lower what it asks for.",
        ),
        (
            deployment(DeploymentStatus.DEPLOY_FAILED, "Traceback (most recent call last): /secret"),
            1,
            "its engine isn't running; completions wait for it; it failed and is started again; its log has the cause.",
        ),
        (deployment(RUNNING=1, STARTING=1), 2, "1 of 2 engines run; it is starting."),
        (
            deployment(STARTING=2),
            2,
            "0 of 2 engines run; completions wait for one; it is starting.",
        ),
    ],
)
def test_what_is_missing_is_said_without_details(found, num_replicas, said):
    assert deployment_fault(found, num_replicas) == said


@dataclass
class Handle:
    """A deployment's handle, of which one method is called."""

    answer: Exception | float = 0.0
    """An error, or how long it takes."""
    deployment_name: str = "engine"
    num_asked: int = 0
    cancelled: int = field(default=0)

    @property
    def check_health(self):
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

    def __await__(self):
        return self._wait().__await__()


@pytest.fixture
def health(monkeypatch):
    """EngineHealth over an engine that Serve calls healthy, whatever its handle answers."""
    application = ApplicationStatusOverview(ApplicationStatus.RUNNING, "", 0.0, {"engine": deployment(RUNNING=1)})
    monkeypatch.setattr(engine_health, "application_status", {"tandem": application}.get)
    monkeypatch.setattr(engine_health, "ANSWER_S", 0.05)
    return lambda handle: EngineHealth("tandem", {BASE: handle}, {BASE: 1})


def test_an_engine_that_answers_is_well(health):
    assert asyncio.run(health(Handle()).faults()) == {}


def test_a_dead_engine_is_told_before_serve_knows(health):
    faults = asyncio.run(health(Handle(RuntimeError("the core died: /secret"))).faults())
    assert faults == {BASE: "its engine has died and is being replaced; completions wait for it."}


def test_an_engine_that_hangs_is_told_and_not_waited_for(health):
    handle = Handle(60.0)
    assert asyncio.run(health(handle).faults()) == {BASE: "its engine doesn't answer; completions wait for it."}
    assert handle.cancelled == 1


def test_engines_are_asked_once_however_many_want_to_know(health, monkeypatch):
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
