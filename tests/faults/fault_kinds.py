"""The faults that a campaign injects."""

from __future__ import annotations

import random
from dataclasses import dataclass
from signal import SIGKILL, SIGSTOP, SIGTERM, Signals

from service_process import ServiceProcess, send, wait_until

LEARNER = "ray::LearnerWorker"
PREPARATION = "ray::PreparationWorker"
COORDINATOR = "ray::ServeReplica:tandem:coordinator"
API = "ray::ServeReplica:tandem:api"
ENGINE = "ray::ServeReplica:tandem:engine"
ENGINE_CORE = "VLLM::EngineCore"
CONTROLLER = "ray::ServeController"
PROXY = "ray::ProxyActor"
ONE_OF_EACH = (LEARNER, COORDINATOR, API, ENGINE, ENGINE_CORE, CONTROLLER, PROXY)
"""Titles of processes that exist once when a service with one replica and one learner has recovered."""
VICTIM_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Fault:
    """A signal to one process of the service, or to all of them."""

    name: str
    what: str
    signal: Signals
    title: str | None = None
    """The start of the process's title. None: `tandem up` itself."""
    everything: bool = False
    is_started_again: bool = False
    """The harness restarts the service at once, as a supervisor would."""

    def inject(self, service: ServiceProcess, rng: random.Random) -> int:
        """Send the signal once there is such a process. Return its pid."""
        if self.everything:
            service.kill_everything()
            return service.pid
        if self.title is None:
            if self.signal == SIGTERM:
                service.terminate()
            else:
                service.kill()
            return service.pid
        title = self.title
        if not wait_until(lambda: service.processes(title), VICTIM_DEADLINE_S):
            raise LookupError(f"{self.name}: no process {title} appeared within {VICTIM_DEADLINE_S:g} s.")
        victim = rng.choice(service.processes(title))
        send(victim, self.signal)
        return victim.pid


_ALL = (
    Fault("kill-learner", "kill -9 of a learner", SIGKILL, LEARNER),
    Fault("kill-engine", "kill -9 of the engine's replica", SIGKILL, ENGINE),
    Fault("kill-engine-core", "kill -9 of vLLM's core process", SIGKILL, ENGINE_CORE),
    Fault("kill-coordinator", "kill -9 of the coordinator", SIGKILL, COORDINATOR),
    Fault("kill-api", "kill -9 of the API replica", SIGKILL, API),
    Fault("kill-preparation", "kill -9 of a preparation process", SIGKILL, PREPARATION),
    Fault("kill-controller", "kill -9 of Serve's controller", SIGKILL, CONTROLLER),
    Fault("kill-proxy", "kill -9 of Serve's HTTP proxy", SIGKILL, PROXY),
    Fault("kill-up", "kill -9 of `tandem up`; started again at once", SIGKILL, is_started_again=True),
    Fault("kill-all", "kill -9 of everything at once; started again", SIGKILL, everything=True, is_started_again=True),
    Fault("stop-learner", "SIGSTOP of a learner", SIGSTOP, LEARNER),
    Fault("stop-engine", "SIGSTOP of the engine's replica", SIGSTOP, ENGINE),
    Fault("stop-engine-core", "SIGSTOP of vLLM's core process", SIGSTOP, ENGINE_CORE),
    Fault("stop-coordinator", "SIGSTOP of the coordinator", SIGSTOP, COORDINATOR),
    Fault("terminate", "SIGTERM to `tandem up`; started again", SIGTERM, is_started_again=True),
)
FAULTS = {fault.name: fault for fault in _ALL}


def drawn(names: list[str], rounds: int, seed: int) -> list[Fault]:
    """Return `rounds` faults in random order. The counts of two kinds differ by at most one."""
    rng, faults = random.Random(seed), list[Fault]()
    while len(faults) < rounds:
        faults += rng.sample([FAULTS[name] for name in names], len(names))
    return faults[:rounds]
