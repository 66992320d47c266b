"""The cause of a failed call to a learner group: of several errors, the first isn't always the one to report."""

from __future__ import annotations

import time
from typing import Any

import ray

from tandem.cluster.errors import PeerLostError
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait

PEER_DEATH_S = 2.0  # how long Ray may take to notice a dead actor
NODE_DEATH_S = 90.0  # the same for a node: about 15 s when its processes die, a minute when it doesn't answer at all


def cause_of(error: BaseException, worker: Any, pending: dict[Any, Any], on_wait: OnWait) -> tuple[BaseException, Any]:
    """Return the error that best explains the failure of a group, and the actor that it is about.

    Args:
        error: the first failure of a rank.
        worker: the actor of that rank.
        pending: the calls without a result yet, and their actors.

    A rank whose peer dies, or loses its GPU, also fails, in a collective, and often first. If an actor's node is lost,
    Ray at first only reports that the actor can't be reached. This waits for the cause, because Ray would place new
    learners on that node until it has noticed the loss.
    """
    if not isinstance(error, ray.exceptions.RayActorError):
        is_cut_off = isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, PeerLostError)
        deadline = time.monotonic() + (NODE_DEATH_S if is_cut_off else PEER_DEATH_S)
        while pending and time.monotonic() < deadline and not isinstance(error, ray.exceptions.RayActorError):
            for ref in ray.wait(list(pending), num_returns=1, timeout=WAIT_PERIOD_S)[0]:
                peer = pending.pop(ref)
                try:
                    ray.get(ref)
                except ray.exceptions.RayActorError as death:
                    error, worker = death, peer
                except ray.exceptions.RayTaskError as failure:
                    if is_cut_off and not isinstance(failure.cause, PeerLostError):
                        return failure, peer
                except Exception:
                    continue
            on_wait()
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        error = _death_of(error, worker, on_wait)
    return error, worker


def _death_of(error: BaseException, worker: Any, on_wait: OnWait) -> BaseException:
    """Return why an unreachable actor died, once Ray knows. `error` if the actor is back, or if Ray doesn't notice."""
    deadline, answer = time.monotonic() + NODE_DEATH_S, worker.__ray_ready__.remote()
    while time.monotonic() < deadline:
        on_wait()
        if not ray.wait([answer], timeout=WAIT_PERIOD_S)[0]:
            continue
        try:
            ray.get(answer)
            return error
        except ray.exceptions.ActorUnavailableError:
            time.sleep(WAIT_PERIOD_S)
            answer = worker.__ray_ready__.remote()
        except ray.exceptions.RayError as death:
            return death
    return error
