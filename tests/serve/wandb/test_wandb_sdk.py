"""The unmodified wandb package, with its compiled core, uploads and downloads through the application's routes."""

import json
from pathlib import Path

import pytest
import torch
from clients_python import needs_clients, run_client

from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.checkpoints import LearnerState, write_checkpoint

pytestmark = needs_clients
PROGRAMS = Path(__file__).parent / "programs"
DATA = "agent-sft-data-0123456789ab"
ROWS = [{"messages": [{"role": "user", "content": "1 + 6 = ?"}, {"role": "assistant", "content": "seven"}]}] * 2


@pytest.fixture
def run(address, app, key, tmp_path):
    """Run a program of the newest clients. Return what it prints as JSON."""

    def run(name, *arguments):
        home = tmp_path / name  # so that nothing comes out of the package's cache
        home.mkdir(exist_ok=True)
        env = {"WANDB_BASE_URL": address, "WANDB_API_KEY": key, "HOME": str(home), "WANDB_DIR": str(home)}
        printed = run_client(PROGRAMS / name, *map(str, arguments), env=env)
        return [json.loads(line) for line in printed.splitlines() if line.startswith(("{", "["))]

    return run


@pytest.fixture
def trained(store, services, add_model, add_job, claim):
    """Two versions of model "agent", with files."""
    model = add_model()
    for step in (1, 2):
        state = LearnerState({"base_model.model.layer.lora_A.weight": torch.full((2, 2), float(step))})
        made = write_checkpoint(services.artifacts.checkpoints_dir, state, {"r": 2}, {"step": step})
        add_job(model, body=str(step) * 64)
        store.claims.complete(claim(), PolicyVersion(model.id, step, made.digest), {})
    return model


def test_training_data_is_uploaded_and_comes_back(run, tmp_path):
    file = tmp_path / "rows"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    size = file.stat().st_size
    [uploaded] = run("upload_dataset.py", file, DATA)
    assert uploaded == ["v0", "COMMITTED", ["latest"], {"format": "jsonl", "num_trajectories": 2}, size]
    [found, changed] = run("download.py", f"team/project/{DATA}:v0", "dataset", tmp_path / "back")
    assert (tmp_path / "back" / "train.jsonl").read_text() == file.read_text()
    assert (found["entity"], found["aliases"]) == ("team", ["latest"])
    assert found["versions"] == [["v0", ["latest"]]]
    assert changed == {"metadata": {"format": "jsonl", "num_trajectories": 2, "wandb.provenance": ["serverless-sft"]}}


def test_a_checkpoint_is_an_artifact_of_its_model(run, trained, services, store, tmp_path):
    [found, changed] = run("download.py", "team/project/agent:step1", "lora", tmp_path / "one")
    assert (found["name"], found["aliases"]) == ("agent:step1", ["step1"])
    assert found["versions"] == [["v2", ["step2", "latest"]], ["v1", ["step1"]]]
    stored = services.artifacts.pull_checkpoint(store.versions.resolve("team", "project", "agent", 1).digest)
    files = sorted((tmp_path / "one").iterdir())
    assert [file.name for file in files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(file.read_bytes() == (stored / file.name).read_bytes() for file in files)
    assert changed == {"metadata": {"wandb.provenance": ["serverless-sft"]}}
    [latest, _] = run("download.py", "team/project/agent:latest", "lora", tmp_path / "newest")
    assert latest["aliases"] == ["step2", "latest"]
