"""Usage of two models over a week, and a job whose first attempt lost its process."""

from datetime import datetime, timedelta

from tandem.cluster.config import PricesConfig
from tandem.cluster.jobs.phases import Phase
from tandem.serve.store.ledger.amounts import Account, Amounts, add_amounts
from tandem.serve.store.tables.training import JobRow
from tandem.serve.store.tables.usage import AttemptRow, SamplingRow
from tandem.serve.usage.costs import prices_content

BASE = "tandem/tiny"
HOSTILE = "=2+3<img src=x onerror=alert(1)>"
PHASES = [
    *[("prepare", 14.0), ("wait_turn", 21.0), ("load", 3.2), ("score", 24.5)],
    *[("step", 48.0), ("record", 0.4), ("step", 51.0), ("check_version", 0.6), ("seal", 0.8)],
    *[("checkpoint", 9.5), ("publish", 2.1), ("idle", 1.2)],
]
LEARNERS = 2


def seed_usage(served, post_job, claim):
    """Return the models, the job, and what yesterday cost in EUR."""
    store, http = served.store, served.http("admin")
    body = {"project": "usage", "base_model": BASE}
    models = [http.post("/v1/preview/models", json=body | {"name": name}).json() for name in ("solver", "judge")]
    key = http.post("/v1/preview/keys", json={"name": HOSTILE, "role": "infer"}).json()
    own = next(row.id for row in store.keys.all("team") if row.name == "train key")
    prices = PricesConfig(currency="EUR", sampled_tokens_per_million=0.5, learner_second=0.002)
    store.usage.set_prices(prices_content(prices))
    now = store.database.now()
    for days in range(7):
        for hour in range(3):
            at = (now - timedelta(days=days)).replace(hour=hour, minute=30)
            charged = []
            for number, model in enumerate(models):
                sampled = Amounts(
                    requests=40 * (days + 1),
                    prompt_tokens=400_000,
                    cached_prompt_tokens=250_000,
                    sampled_tokens=100_000 * (number + 1) * (7 - days),
                    engine_seconds=310.5 + 60 * hour,
                )
                asked = own if number == 0 else key["id"]
                charged.append((Account("team", BASE, model["id"], days, asked, "", "sample"), sampled))
            trained = Amounts(seconds=400.0, learner_seconds=360.0, trained_tokens=220_000, cpu_seconds=11.0)
            charged.append((Account("team", BASE, models[0]["id"], days, own, "", "step"), trained))
            with store.database.write() as session:
                add_amounts(session, at, charged)
    # Of each of the three hours of yesterday: 600,000 and 1,200,000 sampled tokens, and 360 learner-seconds.
    yesterday = 3 * (1.8 * 0.5 + 360 * 0.002)
    return {"models": models, "key": key, "yesterday": yesterday, "job": _job(served, models[0], post_job, claim, now)}


def _job(served, model, post_job, claim, now):
    """Make a job that was accepted 400 s ago, whose second attempt has just ended."""
    store, job_id = served.store, post_job(served, model)
    first = claim(served)
    assert first.id == job_id
    accepted = now - timedelta(seconds=400)
    began = accepted + timedelta(seconds=30)
    store.claims.record_phases(first, _phases(began, PHASES[:3]))
    _move(store, job_id, created_at=accepted, lease_expires_at=accepted)
    second = claim(served)
    assert (second.id, second.attempt) == (job_id, 2)
    begins = {1: began, 2: began + timedelta(seconds=100)}
    store.claims.record_phases(second, _phases(begins[2], PHASES), "failed")
    store.claims.fail(second, "The loss wasn't finite.")
    _move(store, job_id, started_at=began, ended_at=begins[2] + timedelta(seconds=sum(s for _, s in PHASES)))
    with store.database.write() as session:
        for attempt, at in begins.items():
            session.get(AttemptRow, (job_id, attempt)).claimed_at = at
        for since, until in ((-395, -310), (-120, -20)):
            times = {"began_at": now + timedelta(seconds=since), "ended_at": now + timedelta(seconds=until)}
            session.add(SamplingRow(model_id=model["id"], source="seeding", **times))
    return job_id


def _phases(began: datetime, named):
    at, found = began.timestamp(), []
    for name, seconds in named:
        learner = LEARNERS * seconds if name in ("load", "score", "step", "check_version") else 0.0
        tokens = {"trained_tokens": 120_000} if name == "step" else {}
        tokens |= {"scored_tokens": 60_000, "engine_scored_tokens": 90_000} if name == "score" else {}
        cpu = 13.5 if name == "prepare" else 0.01
        found.append(Phase(name, at, at + seconds, seconds, learner_seconds=learner, cpu_seconds=cpu, **tokens))
        at += seconds
    return found


def _move(store, job_id, **times):
    with store.database.write() as session:
        job = session.query(JobRow).where(JobRow.id == job_id).one()
        for name, time in times.items():
            setattr(job, name, time)
