"""Data of the views of versions, saved configurations and fine-tuning jobs."""

import torch
from sqlalchemy import null

from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.serve.modelarts.store.status import UserJobStatus
from tandem.serve.modelarts.store.store import ModelArtsStore
from tandem.serve.store.policies.lineage import ForkSource
from tandem.serve.store.tables.training import NO_PAYLOAD, JobRow, ModelRow, VersionRow

BASE = "tandem/tiny"
NUM_VERSIONS = 1000
NUM_RETIRED = 8
BEST = 640
HOSTILE = "<img src=x onerror=alert(1)>\u202egnp.exe\u200b"
IMPORTED = {"kind": "import", "base_model_name_or_path": HOSTILE, "sha256": "a" * 64}
NUM_LOG_LINES = 100_000
"""About 10 MB."""


def seed_versions(served):
    """A model of a thousand versions with forks, an import, kept and deleted ones; configurations; fine-tuning jobs."""
    store = served.store
    model = store.models.add("team", "versions", "agent", BASE, return_existing=False)
    real = write_checkpoint(
        served.services.artifacts.checkpoints_dir,
        LearnerState({"w": torch.ones(64)}, {"w.exp_avg": torch.ones(64)}),
        {},
        {},
    ).digest
    _add_line(store, model, real)
    fork = store.lineage.fork("team", "versions", "forked", BASE, ForkSource(model.id, BEST))
    store.lineage.fork("team", "versions", "of-zero", BASE, ForkSource(model.id, 0))
    store.versions.keep(model.id, "team", 300, True)
    small = store.models.add("team", "versions", "small", BASE, return_existing=False)
    _add_small(store, small)
    return {"model": model, "fork": fork, "small": small, "digest": real, **_configurations(served), **_tuning(served)}


def _add_line(store, model, real):
    now = store.database.now()
    with store.database.write() as session:
        for step in range(1, NUM_VERSIONS + 1):
            reward = 0.99 if step == BEST else 0.9 - 1 / (1 + step / 100) + 0.03 * (step % 7)
            digest = real if step == BEST else f"{step:064x}"
            metrics = {"reward": reward, "loss": 1 / step, "entropy": 0.5, "reward_std_dev": 0.1}
            row = {"model_id": model.id, "step": step, "digest": digest, "created_at": now, "metrics": metrics}
            gone = {"deleted_at": now, "retired_at": now} if step <= NUM_RETIRED else {}
            session.add(VersionRow(**row, **gone))
            session.add(_job(model, step, step - 1, 1, now))
        session.get(ModelRow, model.number).next_step = NUM_VERSIONS + 1


def _add_small(store, model):
    """Versions 1 to 9 of which 5 and 6 were deleted before 7 was made, and 8 was imported."""
    now = store.database.now()
    with store.database.write() as session:
        for step in range(1, 10):
            imported = {"optimizer_kind": null(), "origin": IMPORTED} if step == 8 else {}
            gone = {"deleted_at": now} if step in (5, 6) else {}
            row = {"model_id": model.id, "step": step, "digest": f"{9000 + step:064x}", "created_at": now}
            session.add(VersionRow(metrics={"reward": step / 10}, **row, **gone, **imported))
            if step != 8:
                start = 4 if step == 7 else step - 1
                session.add(_job(model, step, start, 2, now))
        session.get(ModelRow, model.number).next_step = 10


def _job(model, step, start, series, now):
    return JobRow(
        id=f"00000000-0000-4000-8{series:03}-{step:012}",
        model_id=model.id,
        state="succeeded",
        payload_key=NO_PAYLOAD,
        config={},
        body_sha256="0" * 64,
        step=step,
        start_step=start,
        created_at=now,
        started_at=now,
        ended_at=now,
    )


def _configurations(served):
    store = ModelArtsStore(served.store.database)
    settings = {
        "worker_server_num": 2,
        "app_url": "/bucket/code/",
        "boot_file_url": "/bucket/code/train.py",
        "engine_id": 1,
        "spec_id": 1,
        "data_url": "/bucket/data",
        "train_url": "/bucket/out",
        "parameter": [{"label": "learning_rate", "value": "0.001"}, {"label": "note", "value": HOSTILE}],
    }
    store.configs.add("team", "versions-nightly", f"trains every night {HOSTILE}", settings)
    store.configs.add("team", "versions-other", "never run", settings)
    ids = {}
    for name, status, error in (
        ("versions-first", UserJobStatus.FAILED, "boot file: exit code 1"),
        ("versions-second", UserJobStatus.COMPLETED, None),
        ("versions-third", UserJobStatus.RUNNING, None),
    ):
        version = store.jobs.add("team", name, "", settings, 100, "versions-nightly")
        claimed = store.claims.claim("runner", 1e6)
        store.claims.set_status(claimed, UserJobStatus.RUNNING)
        for start in range(0, NUM_LOG_LINES if name == "versions-first" else 1, 5000):
            store.logs.append(claimed, "worker-0.log", [_line(n) for n in range(start, start + 5000)])
        store.logs.append(claimed, "worker-1.log", ["ready", HOSTILE])
        if status is not UserJobStatus.RUNNING:
            store.claims.end(claimed, status, error)
        ids[name] = (version.job_id, version.id)
    return {"jobs": ids}


def _line(number):
    if number == 77_777:
        return "\x1b[31mTraceback (most recent call last): needle in the haystack\x1b[0m"
    if number == 99_990:
        return f"\x1b]0;title\x07{HOSTILE} \x1b[2J\x1b[1;32mgreen\x1b[0m done"
    return f"{number:06} step loss=0.123456 reward=0.654321 tokens_per_second=12345.6 learning_rate=0.0001"


def _tuning(served):
    http = served.http("train")
    row = b'{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}\n'
    file = http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": ("rows <b>.jsonl", row)}).json()
    wanted = {"model": BASE, "training_file": file["id"], "metadata": {"why": HOSTILE}}
    jobs = [http.post("/v1/fine_tuning/jobs", json={**wanted, "seed": seed}).json() for seed in (1, 2)]
    http.post(f"/v1/fine_tuning/jobs/{jobs[0]['id']}/cancel")
    return {"tuning": jobs, "file": file}
