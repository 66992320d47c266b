"""openpipe-art's own supervised training, pull and fork work with the service in W&B's place."""

import json
from pathlib import Path

from clients_python import needs_clients, run_client
from helpers import events_until_end

PROGRAM = Path(__file__).parent / "art_wandb_client.py"


@needs_clients
def test_the_newest_client_trains_pulls_forks_and_continues(service, http, tmp_path):
    env = {
        "WANDB_BASE_URL": service.url, "WANDB_API_KEY": service.key, "HOME": str(tmp_path), "TMPDIR": str(tmp_path),
        "WANDB_DIR": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }  # fmt: skip
    printed = run_client(PROGRAM, service.url, service.key, str(tmp_path), env=env)
    [found] = [json.loads(line[7:]) for line in printed.splitlines() if line.startswith("RESULT ")]
    jobs = http.get("/preview/training-jobs", params={"model_id": found["model"], "order": "asc"}).json()["data"]
    assert [(job["kind"], job["state"], job["step"]) for job in jobs] == [
        *(("sft", "succeeded", step) for step in (1, 2, 3)),
        ("rl", "succeeded", 4),
    ]
    assert (found["step_after_file"], found["step_after_sft"], found["rl_step_of_source"]) == (1, 3, 4)
    events = events_until_end(http, jobs[0]["id"])
    losses = [event["data"]["loss"] for event in events if event["type"] == "gradient_step"]
    assert len(losses) == 12, "two epochs of twelve rows in batches of two"
    assert losses[-1] < losses[0] / 10
    assert len(found["losses"]) == 2 and all(0 <= loss < losses[0] / 10 for loss in found["losses"])
    assert (found["fork_step"], found["rl_step"]) == (3, 4), "the fork has the step of its source, and continues"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        stored = http.get(f"/preview/models/{found['model']}/versions/3/adapter/{name}").content
        assert (tmp_path / "pulled" / name).read_bytes() == stored
    weights = [
        http.get(f"/preview/models/{found[of]}/versions/3/adapter/adapter_model.safetensors").content
        for of in ("model", "fork")
    ]
    assert weights[0] == weights[1]
