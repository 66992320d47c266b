"""Seconds from a job's POST to the first answer of the version that it makes, over the learner's own compute.

    .venv/bin/python benchmarks/training_loop.py --output benchmarks/results/training_loop.json

Starts `tandem up` with the model of the workload "groups" (`learner_throughput.py`) and posts its job several times,
the first time as soon as the service answers. A client waits for each version as `tandem train` does, and then requests
a token of it. The JSON has, for each job, in seconds after the POST began:

- `accepted`: the job's id arrived;
- `training_started`, `first_step`, `last_step`, `training_ended`: the job's events of these names, as the service dates
  them (its clock is this machine's);
- `visible`: the client's wait for the version ended;
- `answered`: the client has a token of the new version;
- `learner`: the seconds of the learner's gradient steps, by their own metric `time/step_trainer_s`;
- `over_learner`: `answered` over `learner`.

The summary has the median of the jobs after the first, and `first_over_second`. `ready_s` is the time that `tandem up`
took to answer. Nothing else should run meanwhile; the machine's load is recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from learner_throughput import Workload
from queueing.timing import machine
from rich.console import Console
from rich.table import Table

from tandem.rl.tiny.model import TINY_MODEL_DIR

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from service_process import ServiceProcess

BASE = "bench/groups"
REQUEST_S = 600.0
MAX_LENGTH = 2048
STAGES = ("accepted", "training_started", "first_step", "last_step", "training_ended", "visible", "answered")


def write_model(directory: Path, work: Workload) -> None:
    """Write the workload's model, and the tiny model's tokenizer with as many more tokens as the model has."""
    from transformers import AutoTokenizer

    work.make_model(directory)
    file = directory / "config.json"
    config = json.loads(file.read_text()) | {"max_position_embeddings": MAX_LENGTH}  # of a row, not of a sequence
    file.write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_DIR)
    tokenizer.add_tokens([f"<t{index}>" for index in range(len(tokenizer), work.vocabulary)])
    tokenizer.save_pretrained(directory)


def base_model(path: Path, work: Workload) -> dict[str, Any]:
    """Return the configuration of the base model, with the limits of the workload."""
    return {
        "name": BASE,
        "path": str(path),
        "lora": {"r": work.lora_r},
        "engine": {"kv_cache_memory_bytes": 256 << 20},
    }


def write_body(model_id: str, work: Workload) -> bytes:
    """Return a job as rollout code sends it: choices with token ids, logprobs and the ids of their prompt."""

    def choice(ids: list[int], prompt: list[int]) -> dict[str, Any]:
        content: list[dict[str, Any]] = [
            {"token": f"token_id:{id}", "logprob": -9.0, "bytes": None, "top_logprobs": []} for id in ids
        ]
        return {
            "finish_reason": "length", "index": 0, "logprobs": {"content": content, "refusal": None},
            "message": {"role": "assistant", "content": "It is 7. " * (len(ids) // 4), "refusal": None},
            "token_ids": ids, "prompt_token_ids": prompt,
        }  # fmt: skip

    question = {"role": "user", "content": "Which is the largest: 3, 17 or 8?"}
    groups = []
    for group in work.make_groups():
        split = [(s.token_ids[~s.loss_mask].tolist(), s.token_ids[s.loss_mask].tolist(), s.advantage) for s in group]
        trajectories = [
            {"messages_and_choices": [question, choice(ids, prompt)], "reward": reward} for prompt, ids, reward in split
        ]
        groups.append({"trajectories": trajectories})
    longest = max(int(s.num_tokens) for group in work.make_groups() for s in group)
    row = longest + (work.group_size - 1) * (work.completion_tokens + work.spread_tokens + 1)
    config = {"learning_rate": 1e-5, "packed_sequence_length": row}
    return json.dumps({"model_id": model_id, "experimental_config": config, "trajectory_groups": groups}).encode()


def measure_job(http: httpx.Client, model: dict[str, Any], body: bytes, step: int) -> dict[str, float]:
    """Post the job that makes version `step`. Return the seconds from the POST to each stage."""
    began, clock = time.time(), time.perf_counter()

    def since() -> float:
        return time.perf_counter() - clock

    posted = http.post("/preview/training-jobs", content=body, headers={"content-type": "application/json"})
    found = {"accepted": since()}
    job = _checked(posted)["id"]
    newer, wait = f"/preview/models/{model['id']}/versions", {"after": step - 1, "wait": 30}
    while not _checked(http.get(newer, params=wait))["data"]:
        if (state := _checked(http.get(f"/preview/training-jobs/{job}")))["state"] in ("failed", "cancelled"):
            raise RuntimeError(f"The job failed: {state}")
    found["visible"] = since()
    name = f"{model['entity']}/bench/{model['name']}"
    message = {"role": "user", "content": "Hello!"}
    answer = _checked(http.post("/chat/completions", json={"model": name, "messages": [message], "max_tokens": 1}))
    found["answered"] = since()
    if (version := answer["choices"][0]["policy_version"]) != step:
        raise RuntimeError(f"Version {version} answered after version {step} was listed.")
    events = _checked(http.get(f"/preview/training-jobs/{job}/events", params={"limit": 1000}))["data"]
    at = [(event["type"], datetime.fromisoformat(event["created_at"]).timestamp() - began) for event in events]
    steps = [when for kind, when in at if kind == "gradient_step"]
    found |= {kind: when for kind, when in at if kind in ("training_started", "training_ended")}
    found |= {"first_step": steps[0], "last_step": steps[-1]}
    found["learner"] = sum(e["data"].get("time/step_trainer_s", 0.0) for e in events if e["type"] == "gradient_step")
    found["learner"] = found["learner"] or found["last_step"] - found["training_started"]  # of a service without it
    return {**{stage: found[stage] for stage in STAGES}, "learner": found["learner"],
            "over_learner": found["answered"] / found["learner"]}  # fmt: skip


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        request = response.request
        raise RuntimeError(f"{request.method} {request.url} gave {response.status_code}: {response.text[:500]}")
    return response.json()


def run(work: Workload, num_jobs: int, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    before = machine()
    with tempfile.TemporaryDirectory() as directory:
        write_model(Path(directory) / "model", work)
        settings = {"TANDEM_BASE_MODELS": json.dumps([base_model(Path(directory) / "model", work)])}
        with ServiceProcess(Path(directory) / "home", settings) as service:
            key = service.create_key()
            progress("starting the service")
            began = time.perf_counter()
            service.start()
            ready_s = time.perf_counter() - began
            with service.http(key, REQUEST_S) as http:
                jobs = measure_jobs(http, BASE, work, num_jobs, progress)
    return summary(jobs) | {"ready_s": ready_s, "jobs": jobs, "machine": before}


def measure_jobs(
    http: httpx.Client, base: str, work: Workload, num_jobs: int, progress: Callable[[str], None]
) -> list[dict[str, float]]:
    model = _checked(http.post("/preview/models", json={"project": "bench", "name": "loop", "base_model": base}))
    jobs: list[dict[str, float]] = []
    body = write_body(model["id"], work)
    for step in range(1, num_jobs + 1):
        progress(f"job {step} of {num_jobs}")
        jobs.append(measure_job(http, model, body, step))
    return jobs


def summary(jobs: list[dict[str, float]]) -> dict[str, Any]:
    later = jobs[1:]
    return {
        "later_median": {name: statistics.median(job[name] for job in later) for name in jobs[0]},
        "first_over_second": jobs[0]["answered"] / jobs[1]["answered"],
    }


def table(result: dict[str, Any]) -> Table:
    drawn = Table("s after the POST", "first job", "second", "median of later ones")
    for name, value in result["later_median"].items():
        drawn.add_row(name, f"{result['jobs'][0][name]:.2f}", f"{result['jobs'][1][name]:.2f}", f"{value:.2f}")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=5, help="at least 2")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    with console.status("") as status:
        result = run(Workload(), options.jobs, status.update)
    console.print(table(result))
    console.print(f"Ready after {result['ready_s']:.1f} s; first job over second: {result['first_over_second']:.2f}.")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
