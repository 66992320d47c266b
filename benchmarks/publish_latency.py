"""Seconds from a job's last gradient step to the first token of the version that it makes, while rollouts run.

    .venv/bin/python benchmarks/publish_latency.py --output benchmarks/results/publish_latency.json

Starts `tandem up` with the built-in tiny model. `--clients` rollout clients stream completions of a model without a
pause, and note the time of each first token and its policy version. Meanwhile jobs on that model are posted one after
the other. The JSON has the median and the 95th percentile, over the jobs, of the seconds from the last gradient step:

- `published`: to the commit that makes the version visible;
- `first_token`: to the first token of the new version that reaches any client;
- `notified`: to the answer of a client that waits for the version (`GET .../versions?wait=30`);

and of the seconds of a first token in general, from its request (`request_to_token`). The gradient step and the commit
are dated by the job's events, on this machine's clock. The event of the last step is written after the learner has
checked the new weights on a probe, so the seconds of that check (`time/check_version_s`) are taken off its date.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from queueing.timing import machine
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from service_process import ServiceProcess

REQUEST_S = 300.0
BASE = "tandem/tiny"
QUESTION = {"role": "user", "content": "Which is the largest: 3, 17 or 8?"}


class Rollouts:
    """Clients that stream completions of a model until the block ends."""

    def __init__(self, connect: Callable[[], httpx.Client], name: str, num_clients: int, num_tokens: int):
        self._connect, self._name, self._num_tokens = connect, name, num_tokens
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(num_clients)]
        self.tokens: list[tuple[float, float, int]] = []
        """The time of each first token, the seconds since its request, and its policy version."""

    def __enter__(self) -> Rollouts:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(REQUEST_S)

    def first_token(self, version: int) -> float | None:
        """Return when the first token of this version arrived; None if none has."""
        return min((at for at, _, found in self.tokens if found == version), default=None)

    def _run(self) -> None:
        body = {
            "model": self._name, "messages": [QUESTION], "stream": True, "ignore_eos": True,
            "max_tokens": self._num_tokens, "min_tokens": self._num_tokens,
        }  # fmt: skip
        with self._connect() as http:
            while not self._ended.is_set():
                sent = time.time()
                with http.stream("POST", "/chat/completions", json=body) as response:
                    response.raise_for_status()
                    chunks = response.iter_raw()
                    next(chunks)
                    at = time.time()
                    self.tokens.append((at, at - sent, int(response.headers["x-policy-version"])))
                    for _ in chunks:
                        pass


def post_job(http: httpx.Client, model: dict[str, Any], choices: list[dict[str, Any]]) -> str:
    """Post a job of one group, with rewards that differ, and return its id."""
    trajectories = [
        {"messages_and_choices": [QUESTION, choice], "reward": float(index % 2)} for index, choice in enumerate(choices)
    ]
    body = {
        "model_id": model["id"],
        "experimental_config": {"learning_rate": 1e-5},
        "trajectory_groups": [{"trajectories": trajectories}],
    }
    return str(_checked(http.post("/preview/training-jobs", json=body))["id"])


def measure_job(
    http: httpx.Client, model: dict[str, Any], choices: list[dict[str, Any]], step: int, rollouts: Rollouts
) -> dict[str, float]:
    """Post the job that makes version `step`. Return the seconds from its last gradient step to each event."""
    job, path = post_job(http, model, choices), f"/preview/models/{model['id']}/versions"
    while not _checked(http.get(path, params={"after": step - 1, "wait": 30}))["data"]:
        if (state := _checked(http.get(f"/preview/training-jobs/{job}")))["state"] in ("failed", "cancelled"):
            raise RuntimeError(f"The job failed: {state}")
    notified, deadline = time.time(), time.monotonic() + REQUEST_S
    while (first := rollouts.first_token(step)) is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"No client got a token of version {step}.")
        time.sleep(0.01)
    events = _checked(http.get(f"/preview/training-jobs/{job}/events", params={"limit": 1000}))["data"]
    last = {event["type"]: event for event in events}
    at = {type: datetime.fromisoformat(event["created_at"]).timestamp() for type, event in last.items()}
    stepped = at["gradient_step"] - last["gradient_step"]["data"]["time/check_version_s"]
    return {"published": at["training_ended"] - stepped, "first_token": first - stepped, "notified": notified - stepped}


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        request = response.request
        raise RuntimeError(f"{request.method} {request.url} gave {response.status_code}: {response.text[:500]}")
    return response.json()


def measure(connect: Callable[[], httpx.Client], options: argparse.Namespace, progress: Callable[[str], None]) -> Any:
    """Return the seconds of each job, and those of first tokens from their request."""
    with connect() as http:
        model = _checked(http.post("/preview/models", json={"project": "bench", "name": "m", "base_model": BASE}))
        name = f"{model['entity']}/bench/{model['name']}"
        sampled = {"model": name, "messages": [QUESTION], "n": 8, "max_tokens": options.tokens}
        choices = _checked(http.post("/chat/completions", json=sampled))["choices"]
        with Rollouts(connect, name, options.clients, options.tokens) as rollouts:
            progress("the first job, which isn't counted")
            measure_job(http, model, choices, 1, rollouts)
            jobs = []
            for step in range(2, options.jobs + 2):
                progress(f"job {step - 1} of {options.jobs}")
                jobs.append(measure_job(http, model, choices, step, rollouts))
    return jobs, [took for _, took, _ in rollouts.tokens]


def run(options: argparse.Namespace, progress: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    before = machine()
    with tempfile.TemporaryDirectory() as home, ServiceProcess(Path(home), {}) as service:
        key = service.create_key()
        progress("starting the service")
        service.start()
        jobs, waits = measure(lambda: service.http(key, REQUEST_S), options, progress)
    seconds = {name: quantiles([job[name] for job in jobs]) for name in jobs[0]}
    return {
        "clients": options.clients,
        "tokens": options.tokens,
        "seconds": seconds | {"request_to_token": quantiles(waits)},
        "jobs": jobs,
        "machine": before,
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile, which is a value that occurred."""
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p95": ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=40)
    parser.add_argument("--clients", type=int, default=2, help="rollout clients")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of a completion")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    console = Console()
    with console.status("") as status:
        result = run(options, status.update)
    table = Table("s from the last gradient step", "p50", "p95")
    for name, found in result["seconds"].items():
        table.add_row(name, f"{found['p50']:.3f}", f"{found['p95']:.3f}")
    console.print(table)
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
