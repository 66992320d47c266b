"""Supervised jobs on the whole service, by the client's wire and by tandem.client, and reinforcement learning after."""

import json
import os
import re
import subprocess
import sys
import time
import uuid

from paths import ROOT

PAIRS = [("Which is the largest: 1, 2 or 3?", "The largest is 3."), ("Which is the largest: 9, 5 or 4?", "It is 9.")]
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in PAIRS
]
NUMBERS = {
    *("loss", "learning_rate", "grad_norm", "num_trajectories", "num_tokens", "num_trainable_tokens"),
    *("num_dropped_trajectories", "tokens_per_second"),
}


def follow(http, job_id, patience_s=120):
    """Return the events of a job when it has ended, as openpipe-art polls them."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        events = http.get(f"/preview/training-jobs/{job_id}/events").json()["data"]
        if events and events[-1]["type"] in ("training_ended", "training_failed"):
            return events
        time.sleep(0.2)
    raise AssertionError(f"job {job_id} didn't end")


def test_a_job_as_openpipe_art_posts_it(http, service):
    body = {"entity": None, "project": "tests", "name": f"sft-{uuid.uuid4().hex[:8]}", "base_model": "tandem/tiny"}
    model = http.post("/preview/models", json=body).json()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS * 3)
    url = http.post("/preview/datasets", content=lines).json()["url"]
    rates = [1e-2, 1e-2, 5e-3]
    config = {
        "batch_size": 2,
        "learning_rate": rates,
        "assistant_turns": "all",
        "metric_logging": {"enabled": True, "target_training_step": 1},
    }
    posted = {"model_id": model["id"], "training_data_url": url, "config": config}
    too_few = {**posted, "config": {**config, "learning_rate": rates[:2]}}
    job_id = http.post("/preview/sft-training-jobs", json=posted).json()["id"]
    failing = http.post("/preview/sft-training-jobs", json=too_few).json()["id"]
    events = follow(http, job_id)
    assert [event["type"] for event in events] == ["training_started", *["gradient_step"] * 3, "training_ended"]
    assert events[0]["data"]["num_sequences"] == 3
    steps = [event["data"] for event in events[1:-1]]
    assert all(step.keys() == NUMBERS and all(isinstance(n, float) for n in step.values()) for step in steps)
    assert [step["learning_rate"] for step in steps] == rates
    assert steps[2]["loss"] < steps[0]["loss"], "the same two rows in each batch"
    [checkpoint] = [c for c in http.get(f"/preview/models/{model['id']}/checkpoints").json()["data"] if c["step"]]
    assert (checkpoint["step"], checkpoint["metrics"]["sft/num_trajectories"]) == (1, 6.0)
    logs = http.get(f"/preview/models/{model['id']}/logs", params={"split": "sft"}).json()["data"]
    assert [entry["metrics"]["sft/loss"] for entry in logs] == [step["loss"] for step in steps]
    failed = follow(http, failing)
    assert [event["type"] for event in failed] == ["training_failed"]
    assert re.search("2 learning rates.* 3 batches", failed[0]["data"]["error_message"])


def test_the_example_trains_both_ways(service):
    environment = {**os.environ, "TANDEM_URL": service.url, "TANDEM_API_KEY": service.key}
    command = [sys.executable, str(ROOT / "examples" / "sft_then_rl.py"), "--name", f"both-{uuid.uuid4().hex[:8]}"]
    options = ["--rows", "16", "--jobs", "1", "--questions", "4", "--rollouts", "4"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("version 1: loss ") and second.startswith("version 2: reward ")
