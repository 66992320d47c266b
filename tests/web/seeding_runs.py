"""Models with curves, and jobs in each state, written as rows: no learner runs here."""

import math
import random
import uuid
from datetime import UTC, datetime, timedelta

from tandem.serve.store.policies.models import find_model
from tandem.serve.store.tables.training import JobRow, LogRow, VersionRow
from tandem.serve.store.training.events import end, record

BASE = "tandem/tiny"
NUM_VERSIONS = 60
SECONDS = 90.0  # between two versions
FAILURE = (
    "Stage 'step' failed: The gradient or the loss of step 3 is not finite (learning rate 0.5, gradient norm nan, loss "
    "nan), so it was not applied. Lower learning_rate. (attempt 1 of 3)"
)


def seed_runs(served):
    """Two models that learn at different speeds, one with thousands of versions, and jobs in all states."""
    fast, slow, long, busy = (_model(served, name) for name in ("fast", "slow", "long", "busy"))
    add_versions(served.store, fast, NUM_VERSIONS, 0.10, seed=1)
    add_versions(served.store, slow, NUM_VERSIONS, 0.03, seed=2)
    add_versions(served.store, long, 2000, 0.002, seed=3)
    running = _job(served, busy, "running")
    served.coordinator["running_jobs"].append(running)
    waiting = [_job(served, busy, "queued") for _ in range(2)]
    failed = _job(served, busy, "failed")
    return {
        "fast": fast,
        "slow": slow,
        "long": long,
        "busy": busy,
        "running": running,
        "waiting": waiting,
        "failed": failed,
    }


def _model(served, name):
    row = served.store.models.add("team", "runs", name, BASE, return_existing=True)
    return row.id


def add_versions(store, model_id, number, speed, seed):
    """Add versions whose reward rises like 1 - exp(-speed * step), each made by a job."""
    noise, began = random.Random(seed), datetime.now(UTC) - timedelta(seconds=SECONDS * number)
    with store.database.write() as session:
        for step in range(1, number + 1):
            at = began + timedelta(seconds=SECONDS * step)
            session.add(_made_by(model_id, step, at))
            session.add(
                VersionRow(
                    model_id=model_id, step=step, digest=uuid.uuid4().hex * 2, created_at=at,
                    metrics=metrics(step, speed, noise), optimizer_kind="rl",
                )
            )  # fmt: skip
            if step % 10 == 0:
                session.add(_evaluation(model_id, at, 1 - math.exp(-speed * step)))
        find_model(session, model_id, "team").next_step = number + 1


def metrics(step, speed, noise):
    reward = 1 - math.exp(-speed * step) + noise.gauss(0, 0.03)
    width = 0.35 * math.exp(-speed * step / 2)
    return {
        "reward": reward,
        "reward_std_dev": width,
        "reward/min": reward - 2 * width,
        "reward/quantile_10": reward - width,
        "reward/median": reward,
        "reward/quantile_90": reward + width,
        "reward/max": reward + 2 * width,
        "loss/train": 0.4 * math.exp(-speed * step) + noise.gauss(0, 0.02),
        "loss/entropy": 2.2 * math.exp(-speed * step / 3) + 0.2,
        "loss/kl_policy_ref": 0.002 * step * (1 + noise.random() / 4),
        "loss/clip_fraction": 0.02 + 0.02 * noise.random(),
        "loss/grad_norm": 0.5 + noise.random() / 3,
        "loss/learning_rate": 1e-5,
        "policy_lag/mean": float(noise.choice((0, 0, 1))),
        "policy_lag/max": 1.0,
        "logprobs/sampled_current_abs_diff_mean": 2e-4 + (5e-4 if step % 23 == 0 else 0) * noise.random(),
        "logprobs/sampled_current_abs_diff_max": 6e-4 + 1e-4 * noise.random(),
        "data/step_num_tokens_trained": 20000.0 + 500 * noise.random(),
        "data/step_num_trajectories": 64.0,
    }


def _made_by(model_id, step, at):
    return JobRow(
        id=str(uuid.uuid4()),
        model_id=model_id,
        kind="rl",
        state="succeeded",
        payload_key="",
        config={"learning_rate": 1e-5},
        body_sha256=uuid.uuid4().hex * 2,
        attempt=1,
        num_events=0,
        num_gradient_steps=4,
        step=step,
        created_at=at - timedelta(seconds=70),
        started_at=at - timedelta(seconds=60),
        ended_at=at,
    )


def _evaluation(model_id, at, reward):
    return LogRow(
        id=str(uuid.uuid4()), model_id=model_id, split="val", payload_key="", metrics={"reward": reward}, created_at=at
    )


def _job(served, model_id, state):
    """Add a job with the events of its state. A running one has a coordinator that lives: its status is seeded."""
    now = datetime.now(UTC)
    job = _made_by(model_id, None, now)
    job.state, job.ended_at, job.num_gradient_steps = "queued", None, 0
    with served.store.database.write() as session:
        session.add(job)
        session.flush()
        if state == "queued":
            job.started_at, job.attempt = None, 0
            return job.id
        job.lease_expires_at = now + timedelta(days=1)
        record(session, job, "training_started", {"num_trained_groups": 7, "num_trained_trajectories": 48,
               "num_sequences": 50, "num_trained_tokens": 20000, "num_retokenised_tokens": 0}, now)  # fmt: skip
        counts = {"equal_rewards": 12, "too_long": 4}
        message = "48 of 64 trajectories train. Of the others, 12 have the same reward and 4 are too long."
        warning = {"kind": "partly_trained", "message": message, "counts": counts}
        record(session, job, "warning", warning, now)
        noise = random.Random(5)
        for step in range(6):
            record(session, job, "gradient_step", {"loss/train": 0.4 / (step + 1), "loss/grad_norm": 1 + noise.random(),
                   "loss/entropy": 1.5 - step / 10, "loss/clip_fraction": 0.02, "loss/learning_rate": 1e-5,
                   "data/step_trainer_tokens": 3000.0, "time/step_trainer_s": 1.5}, now)  # fmt: skip
        job.state = "running"
        if state == "failed":
            end(session, job, "failed", now, FAILURE)
    return job.id
