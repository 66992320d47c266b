"""Find broken promises: jobs that were lost or doubled, versions with gaps, digests that differ."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fault_load import AcceptedJob, Rollout
from outcome import TERMINAL, Findings, Job, ModelOutcome, Version
from uninterrupted import UninterruptedRun

from tandem.cluster.config import TINY
from tandem.rl.checkpoints import verify_checkpoint
from tandem.rl.errors import CheckpointError

CLOCK_S = 30.0  # from the time in a version's row to the end of its transaction, on a slow machine


def examine(
    home: Path,
    accepted: Sequence[AcceptedJob],
    outcomes: Sequence[ModelOutcome],
    rollouts: Iterable[Rollout],
    findings: Findings,
) -> None:
    """Add to the findings. `home` is that of the service, which has shut down."""
    bodies = {job.id: job.body for job in accepted}
    reference = UninterruptedRun(TINY, home / "uninterrupted")
    check_jobs(accepted, outcomes, findings)
    for outcome in outcomes:
        check_versions(outcome, findings)
        check_checkpoints(outcome, home / "artifacts" / "checkpoints", findings)
        trained = [job.id for job in outcome.jobs if job.state == "succeeded" and job.id in bodies]
        check_digests(outcome, reference.digests([(id, bodies[id]) for id in trained]), findings)
    check_rollouts(rollouts, outcomes, findings)


def check_jobs(accepted: Sequence[AcceptedJob], outcomes: Sequence[ModelOutcome], findings: Findings) -> None:
    """Check that every accepted job exists and succeeded once, and that there are no other jobs."""
    known = {job.id: job for outcome in outcomes for job in outcome.jobs}
    for id, times in Counter(job.id for job in accepted).items():
        if times > 1:
            findings.add(f"{times} requests with different idempotency keys returned job {id}.", "lost", id)
        if id not in known:
            findings.add(f"Job {id} was accepted but isn't listed.", "lost", id)
    for id in known.keys() - {job.id for job in accepted}:
        findings.add(f"Job {id} is listed, but no accepted request returned it.", "doubled", id)
    for job in known.values():
        _check_job(job, findings)


def check_versions(outcome: ModelOutcome, findings: Findings) -> None:
    """Check that versions are 1, 2, 3, ... without a gap, each made by one job, in order of acceptance."""
    steps = [version.step for version in outcome.versions]
    if steps != list(range(1, len(steps) + 1)):
        findings.add(f"Model {outcome.model_id} has the versions {steps}.")
    made = [(job.step, job.id) for job in outcome.jobs if job.state == "succeeded"]
    for step, times in Counter(step for step, _ in made).items():
        if times > 1:
            for id in [id for of, id in made if of == step]:
                findings.add(f"Job {id} claims version {step}, as another job does.", "doubled", id)
    if [step for step, _ in made] != steps:
        findings.add(
            f"Model {outcome.model_id}: the jobs in order of acceptance made the versions "
            f"{[step for step, _ in made]}, and there are {steps}."
        )


def check_checkpoints(outcome: ModelOutcome, checkpoints: Path, findings: Findings) -> None:
    """Check the files of every version against their manifest, and the manifest against the digest."""
    for version in outcome.versions:
        try:
            verify_checkpoint(checkpoints / version.digest)
        except CheckpointError as error:
            findings.add(f"Version {version.step} of model {outcome.model_id}: {error}")


def check_digests(outcome: ModelOutcome, expected: Sequence[str], findings: Findings) -> None:
    """Compare with `expected`, the digests of an uninterrupted run by step from 1."""
    for version, digest in zip(outcome.versions, expected, strict=False):
        if version.digest != digest:
            findings.add(
                f"Version {version.step} of model {outcome.model_id} is {version.digest}; without interruption it is "
                f"{digest}."
            )


def check_rollouts(rollouts: Iterable[Rollout], outcomes: Sequence[ModelOutcome], findings: Findings) -> None:
    """Check that each was answered by a version of its model that was the newest when the request was sent.

    The newest version is the newest that had answered before, or that had existed for CLOCK_S.
    """
    versions: Mapping[str, dict[int, Version]] = {o.model_id: {v.step: v for v in o.versions} for o in outcomes}
    by_answer = deque(sorted(rollouts, key=lambda rollout: rollout.answered_at))
    seen: dict[str, int] = {}  # the newest version that answered, by model
    for rollout in sorted(by_answer, key=lambda rollout: rollout.asked_at):
        while by_answer and by_answer[0].answered_at < rollout.asked_at:
            earlier = by_answer.popleft()
            seen[earlier.model.id] = max(seen.get(earlier.model.id, 0), earlier.step)
        own = versions.get(rollout.model.id, {})  # empty if the service never answered
        what = f"A rollout of {rollout.model.name} was answered by version {rollout.step} ({rollout.digest})"
        if rollout.step and (rollout.step not in own or own[rollout.step].digest != rollout.digest):
            findings.add(f"{what}, which the model doesn't have.")
        newest = max((v.step for v in own.values() if v.at + CLOCK_S < rollout.asked_at), default=0)
        if rollout.step < newest:
            findings.add(f"{what} when version {newest} had been there for more than {CLOCK_S:g} s.")
        elif rollout.step < seen.get(rollout.model.id, 0):
            findings.add(f"{what} after version {seen[rollout.model.id]} had answered.")


def _check_job(job: Job, findings: Findings) -> None:
    types = [event.type for event in job.events]
    ends = [type for type in types if type in TERMINAL]
    if not ends or job.state in ("queued", "running"):
        findings.add(f"Job {job.id} hasn't ended: {job.state}, {types[-3:]}.", "lost", job.id)
    elif len(ends) > 1:
        findings.add(f"Job {job.id} has ended {len(ends)} times.", "doubled", job.id)
    elif types[-1] != ends[0]:
        findings.add(f"Job {job.id} went on after its end: {types[-3:]}.", "doubled", job.id)
    elif (job.state == "succeeded") != (ends[0] == "training_ended"):
        findings.add(f"Job {job.id} is {job.state}, and its last event is {ends[0]}.", "lost", job.id)
    if types.count("training_started") > 1:
        findings.add(f"Job {job.id} has started {types.count('training_started')} times.", "doubled", job.id)
    seqs = [event.seq for event in job.events]
    if seqs != list(range(1, len(seqs) + 1)):
        findings.add(f"The events of job {job.id} are numbered {seqs}.", "lost", job.id)
    if job.state in ("failed", "cancelled"):
        findings.add(f"Job {job.id} {job.state}: {job.error}", "failed", job.id)
