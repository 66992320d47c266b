"""Saved configurations through the HTTP API of the real service: the two-worker example, and offline RL."""

import json
import math
import os
import shutil
import signal
import time
import uuid

import pytest
import torch
from helpers import inference_name, processes, roll_out
from paths import EXAMPLES
from safetensors.torch import load_file

EXAMPLE = EXAMPLES / "training_job_configs"
FAMILY = "/default"
END_S = 600  # a bound; on an idle machine half a minute
COMPLETED = 10


@pytest.fixture
def bucket(service):
    directory = service.home / "projects" / "default" / f"bucket-{uuid.uuid4().hex[:8]}"
    directory.mkdir(parents=True)
    return directory


def ok(response):
    assert response.status_code == 200, response.text
    assert response.json()["is_success"], response.text
    return response.json()


def run(http, config_name, **changes):
    body = {"job_name": f"job-{uuid.uuid4().hex[:8]}", "config": {"config_name": config_name, **changes}}
    return ok(http.post(f"{FAMILY}/training-jobs", json=body))


def until_ended(http, job):
    path = f"{FAMILY}/training-jobs/{job['job_id']}/versions/{job['version_id']}"
    deadline = time.monotonic() + END_S
    while (version := ok(http.get(path)))["status"] in (1, 4, 7, 8, 9):
        assert time.monotonic() < deadline, (version, log(http, job))
        time.sleep(0.3)
    return version


def log(http, job, rank=0):
    path = f"{FAMILY}/training-jobs/{job['job_id']}/versions/{job['version_id']}/aom-log"
    response = http.get(path, params={"log_file": f"worker-{rank}.log", "lines": 500})
    return response.json().get("content", "").splitlines()


def runner_pid():
    """Return the pid of the process that runs users' jobs."""
    return processes(lambda p: p.name().startswith("ray::") and "job-runner" in " ".join(p.cmdline()))[0].pid


def test_the_two_worker_example_trains_and_outlives_its_runner(service, http, bucket):
    shutil.copytree(EXAMPLE / "code", bucket / "code")
    shutil.copytree(EXAMPLE / "data", bucket / "data")
    config = {
        "config_name": f"c-{uuid.uuid4().hex[:8]}",
        "worker_server_num": 2,
        "spec_id": 500,
        "app_url": f"/{bucket.name}/code/",
        "boot_file_url": f"/{bucket.name}/code/boot.py",
        "parameter": [{"label": "num_steps", "value": "300"}, {"label": "learning_rate", "value": 0.1}],
        "data_url": f"/{bucket.name}/data/",
        "engine_id": 2,
        "train_url": f"obs://{bucket.name}/out/",
        "log_url": f"/{bucket.name}/logs/",
    }
    ok(http.post(f"{FAMILY}/training-job-configs", json=config))
    job = run(http, config["config_name"])
    os.kill(runner_pid(), signal.SIGKILL)
    version = until_ended(http, job)
    assert version["status"] == COMPLETED, f"{version['error_message_of_job']}\n{log(http, job)}\n{log(http, job, 1)}"
    result = json.loads((bucket / "out" / "result.json").read_text())
    assert result["slope"] == pytest.approx(2, abs=0.05)
    assert result["intercept"] == pytest.approx(-1, abs=0.05)
    for rank in range(2):
        lines = log(http, job, rank)
        assert any(line.startswith(f"worker {rank} of 2: step 299") for line in lines), lines
        assert not any(line.startswith(f"worker {1 - rank}") for line in lines), "each worker has its own log"
        assert (bucket / "logs" / f"worker-{rank}.log").read_text().splitlines() == lines


def test_a_saved_configuration_reproduces_an_offline_run(service, http, bucket):
    groups = [
        {"trajectories": roll_out(service.openai(), "tandem/tiny", num=4, prompt=f"What is {n} plus 4?")}
        for n in (3, 5, 9)
    ]
    (bucket / "groups.jsonl").write_text("".join(json.dumps(group) + "\n" for group in groups))
    config = {
        "config_name": f"c-{uuid.uuid4().hex[:8]}",
        "worker_server_num": 1,
        "model_id": 2,
        "spec_id": 0,
        "data_url": f"/{bucket.name}/groups.jsonl",
        "train_url": f"/{bucket.name}/out/",
        "log_url": f"/{bucket.name}/logs/",
    }
    ok(http.post(f"{FAMILY}/training-job-configs", json=config | {"parameter": parameters("unused")}))
    adapters = []
    for name in (f"a-{uuid.uuid4().hex[:8]}", f"b-{uuid.uuid4().hex[:8]}"):
        job = run(http, config["config_name"], parameter=parameters(name))
        version = until_ended(http, job)
        assert version["status"] == COMPLETED, (version, log(http, job))
        metrics = [json.loads(line) for line in (bucket / "out" / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in metrics] == [1, 2, 3]
        assert all(math.isfinite(line["loss/train"]) for line in metrics)
        [model] = http.get("/preview/models", params={"name": name}).json()["data"]
        versions = http.get(f"/preview/models/{model['id']}/versions").json()["data"]
        assert [v["step"] for v in versions] == [1, 2, 3]
        adapters.append(load_file(bucket / "out" / "adapter" / "adapter_model.safetensors"))
        assert max(float(t.abs().max()) for key, t in adapters[-1].items() if "lora_B" in key) > 1e-3
        assert sum(": version " in line for line in log(http, job)) == 3
        completion = service.openai().chat.completions.create(
            model=inference_name(model), messages=[{"role": "user", "content": "hello"}], max_tokens=4
        )
        assert completion.choices[0].policy_version == 3
    # The order of summation follows from the job's id, and Adam amplifies rounding where gradients are tiny, so single
    # weights may differ. With other rewards or another order of groups this measure is 0.2 or more.
    first, second = adapters
    learned = norm(weight for key, weight in first.items() if "lora_B" in key)
    assert norm(second[key] - weight for key, weight in first.items()) < 0.05 * learned


def norm(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


def parameters(model_name):
    values = {"model_name": model_name, "project": "offline", "batch_size": 1, "learning_rate": 0.001, "epsilon": 0.2}
    return [{"label": label, "value": str(value)} for label, value in values.items()]


def test_an_invalid_line_fails_the_run_and_is_named(http, bucket):
    (bucket / "groups.jsonl").write_text('{"trajectories": [{"messages_and_choices": [], "reward": "high"}]}\n')
    config = {"worker_server_num": 1, "model_id": 1, "spec_id": 0, "data_url": f"/{bucket.name}/groups.jsonl"}
    body = {"job_name": f"job-{uuid.uuid4().hex[:8]}", "config": {**config, "parameter": parameters("unused")}}
    version = until_ended(http, ok(http.post(f"{FAMILY}/training-jobs", json=body)))
    assert version["status_name"] == "FAILED"
    assert version["error_message_of_job"].startswith("groups.jsonl line 1: trajectories.0.reward: ")


def test_resources_are_those_of_the_live_cluster(http):
    specs = {spec["spec_code"]: spec for spec in ok(http.get(f"{FAMILY}/job/resource-specs"))["specs"]}
    assert specs["tandem.cpu.1"]["max_num"] == 4
    assert specs["tandem.cpu.4"]["no_resource"]
    assert specs["small"]["spec_id"] == 500
