"""Load on a service whose processes are killed: training jobs on some models, and rollouts."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
from patient_client import PatientClient, worth_retrying
from service_process import START_DEADLINE_S, ServiceProcess

BASE_MODEL = "tandem/tiny"
PROMPTS = ("Which is the largest: 3, 17 or 8?", "Say 12.", "Which is the largest: 21, 4 or 9?")
LEARNING_RATE = 1e-3
NUM_MODELS = 2
REPEATS = 2  # of each trajectory group in a job, so that it takes some seconds
PACKED_LENGTH = 64  # a sequence or two: short rows make many gradient steps
PATIENCE_S = START_DEADLINE_S  # a request may have to wait for a restart of the service
REQUEST_S = 30.0
ROLLOUT_S = 10.0  # a completion takes a fraction of a second without faults
ROLLOUT_PAUSE_S = 0.1


@dataclass(frozen=True)
class Model:
    id: str
    name: str
    """The model name in requests for completions."""


@dataclass(frozen=True)
class AcceptedJob:
    """A job whose request the service answered with 200."""

    id: str
    model: Model
    idempotency_key: str
    body: bytes


@dataclass(frozen=True)
class Rollout:
    """A completion and the version that made it."""

    model: Model
    asked_at: float
    answered_at: float
    step: int
    digest: str


class Load:
    """Posts jobs to some models. All randomness comes from `seed`."""

    def __init__(self, service: ServiceProcess, key: str, seed: int):
        self._rng, self._lock = random.Random(seed), threading.Lock()
        self.client = PatientClient(service.http(key, REQUEST_S), PATIENCE_S)
        self.models = [self._register(f"m{number}") for number in range(NUM_MODELS)]
        self._trajectories = [trajectory for prompt in PROMPTS for trajectory in self._sampled(prompt)]
        self.accepted: list[AcceptedJob] = []

    def post_job(self) -> AcceptedJob:
        """Post a job to a random model, and retry until it is accepted."""
        with self._lock:
            model = self.models[self._rng.randrange(len(self.models))]
            rewards = [self._rng.random() for _ in self._trajectories]
            key = str(uuid.UUID(int=self._rng.getrandbits(128), version=4))
        trajectories = [t | {"reward": reward} for t, reward in zip(self._trajectories, rewards, strict=True)]
        body = {
            "model_id": model.id,
            "trajectory_groups": [{"trajectories": trajectories}] * REPEATS,
            "experimental_config": {"learning_rate": LEARNING_RATE, "packed_sequence_length": PACKED_LENGTH},
        }
        raw = json.dumps(body).encode()
        job = AcceptedJob(self._request(key, raw), model, key, raw)
        with self._lock:
            self.accepted.append(job)
        return job

    def post_again(self, job: AcceptedJob) -> str:
        """Repeat the request of a job and return the id in the answer."""
        return self._request(job.idempotency_key, job.body)

    def states(self, first: int) -> list[str]:
        """Return the states of the accepted jobs from number `first` on."""
        paths = [f"/preview/training-jobs/{job.id}" for job in self.accepted[first:]]
        return [self.client.call("GET", path)["state"] for path in paths]

    def num_open(self, first: int) -> int:
        """Return how many of them are queued or running."""
        return sum(state in ("queued", "running") for state in self.states(first))

    def _request(self, key: str, body: bytes) -> str:
        headers = {"Idempotency-Key": key, "content-type": "application/json"}
        return self.client.call("POST", "/preview/training-jobs", content=body, headers=headers)["id"]

    def _register(self, name: str) -> Model:
        body = {"project": "faults", "name": name, "base_model": BASE_MODEL, "return_existing": True}
        model = self.client.call("POST", "/preview/models", json=body)
        return Model(model["id"], f"{model['entity']}/faults/{name}")

    def _sampled(self, prompt: str) -> list[dict[str, Any]]:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.models[0].name, "messages": messages, "n": 8, "max_tokens": 16, "seed": 0}
        choices = self.client.call("POST", "/chat/completions", json=body)["choices"]
        return [{"messages_and_choices": [*messages, choice]} for choice in choices]


@dataclass
class Rollouts:
    """Asks all models for completions from two threads until the block ends, and keeps the answers.

    with Rollouts(service, key, models) as rollouts: ...
    """

    service: ServiceProcess
    key: str
    models: list[Model]
    answered: list[Rollout] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Answers that no client should get, whichever process was killed."""

    def __enter__(self) -> Rollouts:
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(2, "rollouts")
        self._futures = [self._pool.submit(self._run, offset) for offset in range(2)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()
        for future in self._futures:
            future.result()

    def models_answered_since(self, time: float) -> set[Model]:
        """Return the models that answered a rollout requested after `time`."""
        return {rollout.model for rollout in list(self.answered) if rollout.asked_at > time}

    def _run(self, offset: int) -> None:
        with self.service.http(self.key, ROLLOUT_S) as http:
            while not self._ended.wait(ROLLOUT_PAUSE_S):
                offset += 1
                self._ask(http, self.models[offset % len(self.models)])

    def _ask(self, http: httpx.Client, model: Model) -> None:
        body = {"model": model.name, "messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 8}
        asked_at = time.time()
        try:
            response = http.post("/chat/completions", json=body)
        except httpx.TransportError:
            return
        if response.is_success:
            step, digest = int(response.headers["x-policy-version"]), response.headers["x-policy-digest"]
            self.answered.append(Rollout(model, asked_at, time.time(), step, digest))
        elif not worth_retrying(response):
            self.refused.append(f"A rollout of {model.name} was answered {response.status_code}: {response.text}")
