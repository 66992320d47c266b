"""Which promises were broken: jobs that were lost or doubled, versions with gaps, digests that differ."""

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

CLOCK_S = 30.0  # between the time written in a version's row and the end of its transaction, on a machine that stalls


def examine(
    home: Path,
    accepted: Sequence[AcceptedJob],
    outcomes: Sequence[ModelOutcome],
    rollouts: Iterable[Rollout],
    findings: Findings,
) -> None:
    """Adds to the findings. `home`: the service's, which has ended."""
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
    """Every accepted job is there, has ended once and well, and there is none that nobody posted."""
    known = {job.id: job for outcome in outcomes for job in outcome.jobs}
    for id, times in Counter(job.id for job in accepted).items():
        if times > 1:
            findings.add(f"{times} requests, each with a key of its own, were answered with job {id}.", "lost", id)
        if id not in known:
            findings.add(f"Job {id} was accepted and isn't listed.", "lost", id)
    for id in known.keys() - {job.id for job in accepted}:
        findings.add(f"Job {id} is listed, and no accepted request was answered with it.", "doubled", id)
    for job in known.values():
        _check_job(job, findings)


def check_versions(outcome: ModelOutcome, findings: Findings) -> None:
    """Versions are 1, 2, 3, ... without a gap, and each was made by one job, in order of acceptance."""
    steps = [version.step for version in outcome.versions]
    if steps != list(range(1, len(steps) + 1)):
        findings.add(f"Model {outcome.model_id} has the versions {steps}.")
    made = [(job.step, job.id) for job in outcome.jobs if job.state == "succeeded"]
    for step, times in Counter(step for step, _ in made).items():
        if times > 1:
            for id in [id for of, id in made if of == step]:
                findings.add(f"Job {id} says it made version {step}, as another does.", "doubled", id)
    if [step for step, _ in made] != steps:
        findings.add(
            f"Model {outcome.model_id}: the jobs in order of acceptance made the versions "
            f"{[step for step, _ in made]}, and there are {steps}."
        )


def check_checkpoints(outcome: ModelOutcome, checkpoints: Path, findings: Findings) -> None:
    """The files of every version are as their manifest says, and the manifest is what the version is named by."""
    for version in outcome.versions:
        try:
            verify_checkpoint(checkpoints / version.digest)
        except CheckpointError as error:
            findings.add(f"Version {version.step} of model {outcome.model_id}: {error}")


def check_digests(outcome: ModelOutcome, expected: Sequence[str], findings: Findings) -> None:
    """`expected`: the digests of an uninterrupted run, by step from 1."""
    for version, digest in zip(outcome.versions, expected, strict=False):
        if version.digest != digest:
            findings.add(
                f"Version {version.step} of model {outcome.model_id} is {version.digest}; without interruption it is "
                f"{digest}."
            )


def check_rollouts(rollouts: Iterable[Rollout], outcomes: Sequence[ModelOutcome], findings: Findings) -> None:
    """Each was answered by a version that is the model's, and no older than the newest when it was asked for: than any
    that had answered before, or had been there for CLOCK_S."""
    versions: Mapping[str, dict[int, Version]] = {o.model_id: {v.step: v for v in o.versions} for o in outcomes}
    by_answer = deque(sorted(rollouts, key=lambda rollout: rollout.answered_at))
    seen: dict[str, int] = {}  # the newest version that has answered, by model
    for rollout in sorted(by_answer, key=lambda rollout: rollout.asked_at):
        while by_answer and by_answer[0].answered_at < rollout.asked_at:
            earlier = by_answer.popleft()
            seen[earlier.model.id] = max(seen.get(earlier.model.id, 0), earlier.step)
        own = versions.get(rollout.model.id, {})  # none, when the service was never there to be asked
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
