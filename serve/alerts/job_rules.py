"""Rules about jobs and models, whose facts are in the store."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from tandem.cluster.config import AlertRulesConfig
from tandem.serve.alerts.collapse import find_collapse
from tandem.serve.alerts.findings import Finding
from tandem.serve.store.database import Database
from tandem.serve.store.policies.lineage import DISAGREES
from tandem.serve.store.tables.tinker import RunRow
from tandem.serve.store.tables.training import EventRow, JobRow, ModelRow, VersionRow, is_open

RECENT_JOBS = 500
"""Among so many of the newest jobs, models are looked for whose last jobs failed or had alarms."""
RECENT_RUNS = 200
"""So many of the newest runs of clients have their newest version looked at."""
MAX_VERSIONS = 1000
"""Of a model, for its best reward."""
REWARD = "reward"
DISAGREEMENTS = ("engine_disagrees", "logprobs_rescored")


class JobRules:
    """Evaluates the rules; `find` in intervals. A model's rewards are read again once it has a new version."""

    def __init__(self, database: Database, rules: AlertRulesConfig):
        self._database, self._rules = database, rules
        self._collapses: dict[str, tuple[int, Finding | None]] = {}
        """By model: the newest version that was looked at, and the result."""

    def find(self, open_models: Collection[str] = ()) -> list[Finding]:
        """Return what is wrong. `open_models` have alerts about failed jobs or mismatches, which may be over."""
        now = self._database.now()
        with self._database.read() as session:
            return [
                *self._stuck(session, now),
                *self._stalled_queues(session, now),
                *self._last_jobs(session, open_models),
                *self._last_saves(session, open_models),
                *self._reward_collapses(session),
            ]

    def _stuck(self, session: Session, now: datetime) -> Iterable[Finding]:
        """Running jobs without progress: neither claimed nor with an event since the limit."""
        query = select(JobRow, ModelRow).join(JobRow.model).where(is_open(), JobRow.state == "running")
        running = list(session.execute(query))
        newest = _last_events(session, [job.id for job, _ in running])
        for job, model in running:
            since = max(job.started_at or job.created_at, model.last_claimed_at, newest.get(job.id, job.created_at))
            idle_s = (now - since).total_seconds()
            if job.waiting_for is None and idle_s > self._rules.stuck_job_s:
                yield Finding(
                    kind="stuck_job",
                    subject=job.id,
                    entity=model.entity,
                    severity="critical",
                    title=f"A job of {model.path} makes no progress",
                    cause=f"Job {job.id}, attempt {job.attempt}, runs and has had no event for {_minutes(idle_s)}.",
                    remedy="Look at the job's stages and at the log lines with its id. If its learners hang, cancel "
                    "the job and post it again; a job that really takes this long needs a higher "
                    "alert_rules.stuck_job_s.",
                    links=_links(model, job),
                )

    def _stalled_queues(self, session: Session, now: datetime) -> Iterable[Finding]:
        """Queues of a base model that nobody works on, although jobs wait and none runs."""
        states = select(ModelRow.base_model, JobRow.state, func.count(), func.min(JobRow.number))
        query = states.join(ModelRow, ModelRow.id == JobRow.model_id).where(is_open())
        open_jobs: dict[str, dict[str, tuple[int, int]]] = {}
        for base_model, state, count, first in session.execute(query.group_by(ModelRow.base_model, JobRow.state)):
            open_jobs.setdefault(base_model, {})[state] = count, first
        for base_model, by_state in open_jobs.items():
            if "running" in by_state:
                continue
            count, first = by_state["queued"]
            job, model = session.execute(
                select(JobRow, ModelRow).join(JobRow.model).where(JobRow.number == first)
            ).one()
            claimed = session.scalar(
                select(func.max(ModelRow.last_claimed_at)).where(ModelRow.base_model == base_model)
            )
            waits_s = (now - max(job.created_at, claimed or job.created_at)).total_seconds()
            if waits_s > self._rules.stalled_queue_s:
                others = f" {count - 1} more jobs wait behind it." if count > 1 else ""
                yield Finding(
                    kind="stalled_queue",
                    subject=base_model,
                    entity=model.entity,
                    severity="critical",
                    title=f"Jobs of {base_model} wait and none runs",
                    cause=f"Job {job.id} of {model.path} has been first in the queue for {_minutes(waits_s)}.{others}",
                    remedy="The coordinator claims no job: look at /health and its log. It may be starting, or lack "
                    "access to the store.",
                    links=_links(model, job) | {"base_model": base_model},
                )

    def _last_jobs(self, session: Session, open_models: Collection[str]) -> Iterable[Finding]:
        """Models whose last jobs all failed, and those whose last job found other logprobs in the engine."""
        newest = (
            select(JobRow.model_id, JobRow.state, JobRow.ended_at).order_by(JobRow.number.desc()).limit(RECENT_JOBS)
        )
        recent = dict.fromkeys(row.model_id for row in session.execute(newest) if row.ended_at is not None)
        ids = [*recent, *(id for id in open_models if id not in recent)]
        models = session.scalars(select(ModelRow).where(ModelRow.id.in_(ids), ModelRow.deleted_at.is_(None)))
        for model in models:
            last = session.scalars(
                select(JobRow)
                .where(JobRow.model_id == model.id, JobRow.state.in_(("succeeded", "failed")))
                .order_by(JobRow.number.desc())
                .limit(self._rules.failed_jobs)
            ).all()
            yield from self._failed_in_a_row(model, last)
            if last:
                yield from self._disagreement(session, model, last[0])

    def _failed_in_a_row(self, model: ModelRow, last: Sequence[JobRow]) -> Iterable[Finding]:
        if len(last) < self._rules.failed_jobs or any(job.state != "failed" for job in last):
            return
        jobs = "job has" if len(last) == 1 else f"{len(last)} jobs have"
        yield Finding(
            kind="failed_jobs",
            subject=model.id,
            entity=model.entity,
            severity="critical",
            title=f"The last jobs of {model.path} failed",
            cause=f"The last {jobs} failed. The newest: {last[0].error or 'no reason was recorded'}",
            remedy="Read the job's error, which says what to do. The model's newest version is unchanged.",
            links=_links(model, last[0]),
        )

    def _last_saves(self, session: Session, open_models: Collection[str]) -> Iterable[Finding]:
        """Models of clients whose newest version an engine answers otherwise than the learners."""
        recent = select(RunRow.model_id).order_by(RunRow.number.desc()).limit(RECENT_RUNS)
        newest = (
            select(func.max(VersionRow.step))
            .where(VersionRow.model_id == ModelRow.id)
            .correlate(ModelRow)
            .scalar_subquery()
        )
        query = select(ModelRow, VersionRow).join(VersionRow, VersionRow.model_id == ModelRow.id)
        query = query.where(VersionRow.step == newest, VersionRow.deleted_at.is_(None), ModelRow.deleted_at.is_(None))
        query = query.where(or_(ModelRow.id.in_(recent), ModelRow.id.in_(open_models)))
        for model, version in session.execute(query):
            if reason := (version.origin or {}).get(DISAGREES):
                links: dict[str, str | int] = {"model_id": model.id, "model": model.path, "step": version.step}
                yield _mismatch(model, "critical", reason, links)

    def _disagreement(self, session: Session, model: ModelRow, job: JobRow) -> Iterable[Finding]:
        query = select(EventRow).where(EventRow.job_id == job.id, EventRow.type.in_(DISAGREEMENTS))
        event = session.scalars(query.order_by(EventRow.type, EventRow.seq).limit(1)).first()
        if event is None:
            return
        is_refused = event.type == "engine_disagrees"
        tokens = event.data.get("num_tokens", "some")
        rescored = f"The engine's logprobs of {tokens} tokens were discarded, and learners computed them again."
        cause = str(event.data.get("reason", rescored)) if is_refused else rescored
        links = _links(model, job) | ({"step": job.step} if job.step is not None else {})
        yield _mismatch(model, "critical" if is_refused else "warning", cause, links)

    def _reward_collapses(self, session: Session) -> list[Finding]:
        newest: dict[str, int] = {}
        query = select(VersionRow.model_id, func.max(VersionRow.step)).group_by(VersionRow.model_id)
        for model_id, step in session.execute(query):
            newest[model_id] = step
        for gone in self._collapses.keys() - newest.keys():
            del self._collapses[gone]
        changed = [id for id, step in newest.items() if self._collapses.get(id, (None,))[0] != step]
        for model_id in changed:
            model = session.scalar(select(ModelRow).where(ModelRow.id == model_id, ModelRow.deleted_at.is_(None)))
            found = None if model is None else self._collapse(session, model)
            self._collapses[model_id] = newest[model_id], found
        deleted = set(session.scalars(select(ModelRow.id).where(ModelRow.deleted_at.is_not(None))))
        return [found for id, (_, found) in self._collapses.items() if found and id not in deleted]

    def _collapse(self, session: Session, model: ModelRow) -> Finding | None:
        query = select(VersionRow.step, VersionRow.metrics).where(VersionRow.model_id == model.id)
        rows = session.execute(query.order_by(VersionRow.step.desc()).limit(MAX_VERSIONS)).all()[::-1]
        steps = [(step, metrics[REWARD]) for step, metrics in rows if isinstance(metrics.get(REWARD), int | float)]
        rules, rewards = self._rules, [float(reward) for _, reward in steps]
        found = find_collapse(rewards, rules.reward_window, rules.reward_drop, rules.reward_noise)
        if found is None:
            return None
        best_step, last_step = steps[found.best_index][0], steps[-1][0]
        return Finding(
            kind="reward_collapse",
            subject=model.id,
            entity=model.entity,
            severity="critical",
            title=f"The reward of {model.path} has collapsed",
            cause=f"The mean reward of the last {rules.reward_window} versions, up to {last_step}, is "
            f"{found.recent:.4g}. Up to version {best_step} it was {found.best:.4g}; one version varies by about "
            f"{found.noise:.2g}.",
            remedy=f"Look at the groups of version {last_step}, its KL, clip share and entropy. To go on from before, "
            f"fork the model from version {best_step}, with a lower learning rate.",
            links={"model_id": model.id, "model": model.path, "step": last_step, "best_step": best_step},
        )


def _last_events(session: Session, job_ids: Sequence[str]) -> dict[str, datetime]:
    query = select(EventRow.job_id, EventRow.created_at).join(
        JobRow, (JobRow.id == EventRow.job_id) & (JobRow.num_events == EventRow.seq)
    )
    return {job_id: at for job_id, at in session.execute(query.where(EventRow.job_id.in_(job_ids)))}


def _mismatch(
    model: ModelRow, severity: Literal["critical", "warning"], cause: str, links: dict[str, str | int]
) -> Finding:
    return Finding(
        kind="logprob_mismatch",
        subject=model.id,
        entity=model.entity,
        severity=severity,
        title=f"Engine and learners disagree about {model.path}",
        cause=cause,
        remedy="Rollouts of this version may be sampled from another policy than the one that trains. Compare the "
        "dtypes of engine and learners, and restart the engine if only one version is concerned.",
        links=links,
    )


def _links(model: ModelRow, job: JobRow) -> dict[str, str | int]:
    return {"model_id": model.id, "model": model.path, "job_id": job.id}


def _minutes(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
