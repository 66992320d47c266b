"""Pieces of user code that the end-to-end tests share."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx
import psutil
from openai import OpenAI

PROMPT = "Which is the largest: 3, 17 or 8?"
OTHER_PROMPT = "Which is the largest: 9, 5 or 12?"


def register(http: httpx.Client, name: str | None = None) -> dict[str, Any]:
    body = {
        "entity": None,
        "project": "tests",
        "name": name or f"m-{uuid.uuid4().hex[:8]}",
        "base_model": "tandem/tiny",
    }
    response = http.post("/preview/models", json={**body, "return_existing": True})
    assert response.status_code == 200, response.text
    return response.json()


def inference_name(model: dict[str, Any], step: int | None = None) -> str:
    name = f"wandb-artifact:///{model['entity']}/{model['project']}/{model['name']}"
    return name if step is None else f"{name}:step{step}"


def roll_out(openai: OpenAI, name: str, num: int = 8, prompt: str = PROMPT, **options: Any) -> list[dict[str, Any]]:
    """Sample `num` trajectories: half of them answer `prompt` and get reward 1, half answer OTHER_PROMPT and get 0.

    With one prompt alone, equal answers in both halves would cancel out, and the job would train nothing.
    """
    trajectories = []
    for content, reward in ((prompt, 1.0), (OTHER_PROMPT, 0.0)):
        messages = [{"role": "user", "content": content}]
        completion = openai.chat.completions.create(model=name, messages=messages, n=num // 2, max_tokens=24, **options)
        trajectories += [
            {"messages_and_choices": [*messages, choice.model_dump()], "reward": reward}
            for choice in completion.choices
        ]
    return trajectories


def post_job(http: httpx.Client, model: dict[str, Any], trajectories: list[dict[str, Any]], **config: Any) -> str:
    body = {
        "model_id": model["id"],
        "trajectory_groups": [{"trajectories": trajectories}],
        "experimental_config": {"learning_rate": 1e-3, **config},
    }
    response = http.post("/preview/training-jobs", json=body)
    assert response.status_code == 200, response.text
    return response.json()["id"]


def events_until_end(http: httpx.Client, job: str, deadline_s: float = 300) -> list[dict[str, Any]]:
    """Return all events of a job once it has ended."""
    deadline = time.monotonic() + deadline_s
    events: list[dict[str, Any]] = []
    while time.monotonic() < deadline:
        after = {"after": events[-1]["id"]} if events else {}
        page = http.get(f"/preview/training-jobs/{job}/events", params={"limit": 100, **after}).json()
        events += page["data"]
        if events and events[-1]["type"] in ("training_ended", "training_failed"):
            return events
        if not page["has_more"]:
            time.sleep(0.2)
    raise AssertionError(f"Job {job} hasn't ended within {deadline_s} s; its events are {events}.")


def wait_for_health(url: str, holds: Callable[[dict[str, Any]], bool], deadline_s: float) -> dict[str, Any]:
    """Poll /health until `holds` accepts an answer, and return it. On a busy machine a part may miss a health check."""
    deadline = time.monotonic() + deadline_s
    while not holds(health := httpx.get(f"{url}/health", timeout=120).json()):
        assert time.monotonic() < deadline, health
        time.sleep(0.5)
    return health


def processes(holds: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Return the processes of this test run that `holds` accepts. Skip those that end meanwhile."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if process.status() != psutil.STATUS_ZOMBIE and holds(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def train(
    http: httpx.Client, model: dict[str, Any], trajectories: list[dict[str, Any]], **config: Any
) -> list[dict[str, Any]]:
    """Post a job, assert that it succeeds and that its engine agrees with its learner, and return its events."""
    events = events_until_end(http, post_job(http, model, trajectories, **config))
    assert events[-1]["type"] == "training_ended", events[-1]
    assert "engine_disagrees" not in {event["type"] for event in events}, events
    return events
