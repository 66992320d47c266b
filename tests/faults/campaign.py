"""Inject one fault after another into a service under load, then examine the results."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import httpx
import psutil
from examination import examine
from fault_kinds import ONE_OF_EACH, Fault
from fault_load import Load, Rollouts
from fault_report import Campaign, Round
from outcome import Findings, ModelOutcome, read_outcome
from patient_client import RefusedError
from service_process import ServiceError, ServiceProcess, send, title_of, wait_until
from silences import longest_outage, longest_silence

SETTINGS = {
    "TANDEM_COORDINATOR__LEASE_S": "6",
    "TANDEM_DEADLINES__PREPARE_S": "120",
    "TANDEM_DEADLINES__LOAD_S": "20",
    "TANDEM_DEADLINES__STEP_S": "10",
    "TANDEM_DEADLINES__CHECKPOINT_S": "20",
}
"""Shorter than the defaults, which suit large models, so that a round doesn't take half an hour."""
RECOVERY_DEADLINE_S = 1200.0
CLEAN_DEADLINE_S = 300.0  # Ray's agents need up to two minutes to notice that their raylet was killed
MAX_DELAY_S = 8.0  # from the start of a job to the fault, drawn at random
QUEUE = 2  # jobs that are open when the fault comes
JOBS_AFTER = 2  # posted right after the fault


class RecoveryError(AssertionError):
    """The service didn't recover within the deadline."""


def run_campaign(
    home: Path,
    faults: Sequence[Fault],
    seed: int,
    until: float = float("inf"),
    tell: Callable[[str], None] = lambda _: None,
) -> Campaign:
    """Inject `faults` in turn, and start no round after the monotonic time `until`.

    The findings list every broken promise. Raises ServiceError if the service doesn't start the first time.
    """
    rng, findings, rounds = random.Random(seed), Findings(), []
    with ServiceProcess(home, SETTINGS) as service:
        key = service.create_key()
        service.start()
        load = Load(service, key, seed)
        with Rollouts(service, key, load.models) as rollouts:
            for number, fault in enumerate(faults, 1):
                if time.monotonic() > until:
                    tell(f"out of time after {number - 1} of {len(faults)} rounds")
                    break
                tell(f"round {number} of {len(faults)}: {fault.what}")
                try:
                    rounds.append(_run_round(service, load, rollouts, fault, rng, findings))
                except (RecoveryError, RefusedError, ServiceError, LookupError, httpx.HTTPError) as error:
                    findings.add(f"Round {number}, {fault.what}: {error}")
                    tell(f"  given up: {error}")
                    break
                tell(f"  recovered after {rounds[-1].recovered - rounds[-1].injected:.0f} s")
        outcomes = _settle(service, load, findings)
    findings.sentences += rollouts.refused
    tell("training the same jobs without interruption, to compare")
    examine(home, load.accepted, outcomes, rollouts.answered, findings)
    return Campaign(
        rounds=tuple(_judged(round, outcomes, rollouts, findings) for round in rounds),
        num_jobs=len(load.accepted),
        num_versions=sum(len(outcome.versions) for outcome in outcomes),
        num_rollouts=len(rollouts.answered),
        findings=tuple(findings.sentences),
    )


def _settle(service: ServiceProcess, load: Load, findings: Findings) -> list[ModelOutcome]:
    """Repeat every request, read the outcome of the jobs, and shut the service down."""
    try:
        for job in load.accepted:
            if (repeated := load.post_again(job)) != job.id:
                findings.add(f"Job {job.id}: a repeat of its request returned job {repeated}.", "doubled", job.id)
        outcomes = [read_outcome(load.client, model.id) for model in load.models]
        service.terminate()
        wait_until(lambda: not service.processes(), CLEAN_DEADLINE_S)
        if left := service.processes():
            findings.add(f"The service shut down and left {', '.join(map(title_of, left))}.")
        return outcomes
    except (RefusedError, ServiceError, httpx.HTTPError) as error:
        findings.add(f"At the end: {error}")
        return []


def _judged(round: Round, outcomes: Sequence[ModelOutcome], rollouts: Rollouts, findings: Findings) -> Round:
    """Return the round with the numbers that are known only after the campaign."""
    jobs, span = [job for outcome in outcomes for job in outcome.jobs], (round.injected, round.recovered)
    return replace(
        round,
        longest_silence_s=longest_silence(jobs, *span),
        longest_outage_s=longest_outage([r.answered_at for r in rollouts.answered], *span),
        **{kind: len(blamed.intersection(round.jobs)) for kind, blamed in findings.blamed.items()},
    )


def _run_round(
    service: ServiceProcess, load: Load, rollouts: Rollouts, fault: Fault, rng: random.Random, findings: Findings
) -> Round:
    """Run one round. Raises RecoveryError, or an error of the service's clients, if the service doesn't recover."""
    began, first = time.time(), len(load.accepted)
    for _ in range(QUEUE):
        load.post_job()
    # On a slow machine it may have ended before this looks.
    _expect("a job has started", lambda: any(state != "queued" for state in load.states(first)))
    injection = time.monotonic() + rng.uniform(0, MAX_DELAY_S)
    while (remaining := injection - time.monotonic()) > 0:
        if load.num_open(first) < QUEUE:
            load.post_job()
        time.sleep(min(remaining, 0.2))
    while not (open_jobs := load.num_open(first)):  # on a slow machine all may have ended
        load.post_job()
    with ThreadPoolExecutor(JOBS_AFTER) as pool:
        injected = time.time()
        pid = fault.inject(service, rng)
        posts = [pool.submit(load.post_job) for _ in range(JOBS_AFTER)]
        if fault.is_started_again:
            service.start()
        for post in posts:
            post.result()
    _expect("all jobs have ended", lambda: load.num_open(first) == 0)
    ended = time.time()
    _expect("rollouts of every model are answered", lambda: rollouts.models_answered_since(ended) == set(load.models))
    recovered = time.time()
    if remaining := _surplus(service, pid if fault.signal == SIGSTOP else None):
        findings.add(f"After {fault.what}, these processes remained: {', '.join(map(title_of, remaining))}.")
        for process in remaining:
            send(process, SIGKILL)
    jobs = tuple(job.id for job in load.accepted[first:])
    return Round(fault.name, fault.what, pid, began, injected, recovered, jobs, open_jobs)


def _expect(what: str, holds: Callable[[], bool]) -> None:
    if not wait_until(holds, RECOVERY_DEADLINE_S):
        raise RecoveryError(f"After {RECOVERY_DEADLINE_S:g} s, this isn't true: {what}.")


def _surplus(service: ServiceProcess, stopped: int | None) -> list[psutil.Process]:
    """Return the processes that should have ended because of the fault and still run after CLEAN_DEADLINE_S."""

    def surplus() -> list[psutil.Process]:
        found = service.earlier_processes()
        for title in ONE_OF_EACH:
            found += service.processes(title)[:-1]
        return found + [process for process in service.processes() if process.pid == stopped]

    wait_until(lambda: not surplus(), CLEAN_DEADLINE_S)
    return surplus()
