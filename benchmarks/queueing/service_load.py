"""Load on a running service, and the processor time of each of its processes: requests, jobs, and loops of both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from queueing.timing import usage

ROLES = {
    "proxy": "ray::ProxyActor",
    "api": "ray::ServeReplica:tandem:api",
    "engine": "ray::ServeReplica:tandem:engine",
    "core": "VLLM::EngineCore",
    "coordinator": "ray::ServeReplica:tandem:coordinator",
    "learner": "ray::LearnerWorker",
    "preparation": "ray::PreparationWorker",
}
"""Titles of the service's processes."""
QUESTION = "Which is the largest: 3, 17 or 8?"
REQUEST_S = 300.0
JOB_S = 600.0


@dataclass(frozen=True)
class Shape:
    """A request for a number of completions with an exact number of tokens each."""

    completions: int
    tokens: int


class Meter:
    """`with meter.reading(record): ...` adds wall seconds and the processor seconds of each role to `record`."""

    def __init__(self, pids_of: Callable[[str], list[int]]):
        self._pids = {role: pids_of(title) for role, title in ROLES.items()}
        if missing := [role for role, pids in self._pids.items() if not pids]:
            raise RuntimeError(f"The service has no process for {', '.join(missing)}, so nothing can be measured.")

    @contextmanager
    def reading(self, record: dict[str, Any]) -> Iterator[None]:
        before, began = {role: usage(pids) for role, pids in self._pids.items()}, time.perf_counter()
        yield
        record["wall_s"] = time.perf_counter() - began
        used = {role: usage(pids) - before[role] for role, pids in self._pids.items()}
        record["core_s"] = {role: u.ran_s for role, u in used.items()}
        record["waited_s"] = {role: u.waited_s for role, u in used.items()}


class Client:
    """Rollout and training code with exact amounts."""

    def __init__(self, http: httpx.Client):
        self._http = http

    def register(self, name: str) -> Model:
        body = {"project": "scaling", "name": name, "base_model": "tandem/tiny", "return_existing": True}
        answer = self._call("POST", "/preview/models", json=body)
        return Model(answer["id"], f"{answer['entity']}/scaling/{name}")

    def look(self, model: Model) -> None:
        """Send a small request."""
        self._call("GET", f"/preview/models/{model.id}")

    def complete(self, model: Model, shape: Shape) -> list[dict[str, Any]]:
        """Return the choices of one request."""
        body = {
            "model": model.name, "messages": [{"role": "user", "content": QUESTION}], "n": shape.completions,
            "max_tokens": shape.tokens, "min_tokens": shape.tokens, "ignore_eos": True,
        }  # fmt: skip
        choices: list[dict[str, Any]] = self._call("POST", "/chat/completions", json=body)["choices"]
        return choices

    def post_job(self, model: Model, groups: list[list[dict[str, Any]]], packed_length: int) -> str:
        """Post a job and return its id. Rewards alternate, so that every group trains."""
        question = {"role": "user", "content": QUESTION}
        trajectories = [
            [{"messages_and_choices": [question, choice], "reward": float(k % 2)} for k, choice in enumerate(group)]
            for group in groups
        ]
        config = {"learning_rate": 1e-4, "packed_sequence_length": packed_length}
        body = {
            "model_id": model.id, "experimental_config": config,
            "trajectory_groups": [{"trajectories": group} for group in trajectories],
        }  # fmt: skip
        return str(self._call("POST", "/preview/training-jobs", json=body)["id"])

    def events(self, job: str) -> list[dict[str, Any]]:
        page = self._call("GET", f"/preview/training-jobs/{job}/events", params={"limit": 1000})
        events: list[dict[str, Any]] = page["data"]
        return events

    def job(self, job: str) -> dict[str, Any]:
        found: dict[str, Any] = self._call("GET", f"/preview/training-jobs/{job}")
        return found

    def wait_for_version(self, model: Model, step: int, job: str) -> None:
        """Wait until the job has made the model's version `step`. Raise RuntimeError or TimeoutError."""
        deadline = time.monotonic() + JOB_S
        path, options = f"/preview/models/{model.id}/versions", {"after": step - 1, "wait": 30}
        while not self._call("GET", path, params=options)["data"]:
            if (state := self.job(job))["state"] == "failed":
                raise RuntimeError(f"Job {job} failed: {state}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{model.name} had no version {step} after {JOB_S:g} s.")

    def _call(self, method: str, path: str, **options: Any) -> Any:
        response = self._http.request(method, path, **options)
        if response.is_error:
            raise RuntimeError(f"{method} {path} was rejected with {response.status_code}: {response.text[:500]}")
        return response.json()


@dataclass(frozen=True)
class Model:
    id: str
    name: str
    """The name in completion requests."""


def many(work: Callable[[], object], count: int, at_once: int) -> list[float]:
    """Do `work` `count` times, `at_once` at a time. Return the seconds of each."""

    def timed(_: int) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(timed, range(count)))


def measure_looks(client: Client, meter: Meter, model: Model, count: int, at_once: int) -> dict[str, Any]:
    record: dict[str, Any] = {"requests": count, "at_once": at_once}
    with meter.reading(record):
        latencies = many(lambda: client.look(model), count, at_once)
    return record | {"median_latency_s": statistics.median(latencies)}


def measure_completions(
    client: Client, meter: Meter, model: Model, shape: Shape, count: int, at_once: int
) -> dict[str, Any]:
    record: dict[str, Any] = {"requests": count, "at_once": at_once, **vars(shape)}
    with meter.reading(record):
        latencies = many(lambda: client.complete(model, shape), count, at_once)
    return record | {"median_latency_s": statistics.median(latencies)}


def measure_job(client: Client, meter: Meter, model: Model, shape: Shape, groups: int, packed: int, step: int) -> Any:
    """Time one job alone: to its acceptance, to its version, and to the first completion from that version."""
    sampled = [client.complete(model, shape) for _ in range(groups)]
    record: dict[str, Any] = {"groups": groups, "packed_length": packed, **vars(shape)}
    one = Shape(1, 1)
    before = statistics.median(many(lambda: client.complete(model, one), 5, 1))
    with meter.reading(record):
        began = time.perf_counter()
        job = client.post_job(model, sampled, packed)
        accepted = time.perf_counter()
        client.wait_for_version(model, step, job)
        published = time.perf_counter()
    first = many(lambda: client.complete(model, one), 1, 1)[0]
    events = client.events(job)
    return record | {
        "accept_s": accepted - began,
        "version_s": published - accepted,
        "first_completion_s": first,
        "other_completion_s": before,
        "gradient_steps": sum(event["type"] == "gradient_step" for event in events),
        "trained_tokens": sum(
            e["data"].get("data/step_trainer_tokens", 0) for e in events if e["type"] == "gradient_step"
        ),
        "job": client.job(job),
        "events": [{"type": e["type"], "created_at": e["created_at"]} for e in events],
    }


def measure_loops(
    client: Client, meter: Meter, models: Sequence[Model], shape: Shape, groups: int, packed: int, jobs: int
) -> dict[str, Any]:
    """Run one RL loop per model, `jobs` times each: request all groups at once, post, wait for the version."""
    record: dict[str, Any] = {"runs": len(models), "groups": groups, "packed_length": packed, "jobs": 0, **vars(shape)}

    def run(model: Model) -> list[dict[str, float]]:
        rounds = []
        for step in range(1, jobs + 1):
            began = time.perf_counter()
            with ThreadPoolExecutor(groups) as pool:
                sampled = list(pool.map(lambda _: client.complete(model, shape), range(groups)))
            rolled_out = time.perf_counter()
            job = client.post_job(model, sampled, packed)
            accepted = time.perf_counter()
            client.wait_for_version(model, step, job)
            ended = time.perf_counter()
            rounds.append({"rollouts_s": rolled_out - began, "accept_s": accepted - rolled_out,
                           "version_s": ended - accepted})  # fmt: skip
        return rounds

    with meter.reading(record), ThreadPoolExecutor(len(models)) as pool:
        rounds = [r for of_run in pool.map(run, models) for r in of_run]
    record["jobs"] = len(rounds)
    record["jobs_per_s"] = len(rounds) / record["wall_s"]
    record["rollouts_per_s"] = len(rounds) * groups * shape.completions / record["wall_s"]
    return record | {f"median_{k}": statistics.median(r[k] for r in rounds) for k in rounds[0]}
