"""A service under a test's control, over real HTTP and with the real service's answers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import zstandard
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tandem.cluster.processes.held_ports import hold_port

TIME = "2026-01-01T00:00:00Z"


@dataclass
class Job:
    id: str
    key: str
    body: dict[str, Any]
    body_sha256: str
    events: list[dict[str, Any]] = field(default_factory=list)
    trained_on: int | None = None
    """The version that it started from."""
    step: int | None = None

    def add(self, type: str, **data: Any) -> None:
        event = {"id": str(len(self.events)), "type": type, "data": data, "created_at": TIME}
        self.events.append(event)

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] in ("training_ended", "training_failed")

    @property
    def trajectories(self) -> list[dict[str, Any]]:
        return [t for group in self.body["trajectory_groups"] for t in group["trajectories"]]

    @property
    def questions(self) -> list[str]:
        """The questions of the job's groups, in order."""
        groups = self.body["trajectory_groups"]
        return [group["trajectories"][0]["messages_and_choices"][0]["content"] for group in groups]

    @property
    def lags(self) -> list[int]:
        """The policy lag of each trajectory, by the oldest version of its turns."""
        return [
            self.trained_on
            - min(turn["policy_version"] for turn in t["messages_and_choices"] if "policy_version" in turn)
            for t in self.trajectories
        ]


class ScriptedService:
    """One model, versions that jobs make, completions that report the version that answered.

    with ScriptedService() as service: ... service.url
    """

    def __init__(self, training_s: float = 0.0, completion_s: float = 0.0, seed: int = 0):
        """`training_s`, `completion_s`: the longest time of each; the actual time is random unless `is_constant`."""
        self.training_s, self.completion_s, self.is_constant = training_s, completion_s, False
        self.model: dict[str, Any] | None = None
        self.step = 0
        self.jobs: list[Job] = []
        self.completions: list[tuple[str, int]] = []
        self.logs: list[dict[str, Any]] = []
        self.log_status = 200
        """The requested model name and the version that answered."""
        self.completion_bodies: list[dict[str, Any]] = []
        self.requests: list[tuple[float, str, str]] = []
        self.intercept: Callable[[Request], Response | None] = lambda request: None
        """Returns a replacement for the answer, "reset" to close the connection, or None."""
        self.faults: Callable[[dict[str, Any]], list[tuple[str | int, ...]]] = lambda body: []
        """Places of a job's body that are rejected."""
        self.fail_jobs = 0
        self.trains_nothing: Callable[[Job], bool] = lambda job: False
        self.warnings: list[dict[str, Any]] = []
        """Data of the warnings of each job."""
        self.holds_job: Callable[[Job], bool] = lambda job: False
        """The job stays running while this returns True. Called in the service's thread."""
        self.holds_completion: Callable[[str, int], bool] = lambda model, version: False
        """The same for a completion, given the requested model name and the version that answers."""
        self.claimed_version: Callable[[int], int] = lambda version: version
        """The version that a completion reports."""
        self.sampled_tokens: Callable[[int | None, int], list[int]] = self._sample
        """The tokens of choice `index` of a request with a seed or without."""
        self._rng = random.Random(seed)
        self._queue: asyncio.Queue[Job] = asyncio.Queue()

    def __enter__(self) -> ScriptedService:
        self._held = hold_port("127.0.0.1")  # keeps the port while the service is down
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._held.close()

    def start(self) -> None:
        config = uvicorn.Config(
            self._app(), host="127.0.0.1", port=self.port, log_level="critical", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop, and keep all data. `start` then restarts the running job."""
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _app(self) -> Starlette:
        routes = [
            Route("/v1/preview/models", self._register, methods=["POST"]),
            Route("/v1/preview/models/{id}/versions", self._versions),
            Route("/v1/preview/models/{id}/log", self._log, methods=["POST"]),
            Route("/v1/preview/training-jobs", self._post_job, methods=["POST"]),
            Route("/v1/preview/training-jobs/{id}", self._job),
            Route("/v1/preview/training-jobs/{id}/events", self._events),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        app = Starlette(routes=routes, lifespan=self._lifespan)

        async def intercepting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            request = Request(scope, receive)
            self.requests.append((time.monotonic(), request.method, request.url.path))
            answer = self.intercept(request)
            if answer == "reset":
                raise ConnectionResetError  # uvicorn closes the connection without an answer
            await (answer or app)(scope, receive, send)

        return intercepting

    async def _register(self, request: Request) -> Response:
        wanted = await request.json()
        if self.model is None:
            self.model = {"id": str(uuid.uuid4()), "entity": "default", **{k: wanted[k] for k in ("project", "name")}}
        return JSONResponse({**self.model, "step": self.step, "base_model": wanted["base_model"], "created_at": TIME})

    async def _versions(self, request: Request) -> Response:
        after, deadline = int(request.query_params["after"]), time.monotonic() + float(request.query_params["wait"])
        while self.step <= after and time.monotonic() < deadline and not self._server.should_exit:
            await asyncio.sleep(0.005)
        versions = [{"step": step, "digest": f"{step}", "created_at": TIME} for step in range(after + 1, self.step + 1)]
        return JSONResponse(_page(versions))

    async def _log(self, request: Request) -> Response:
        if self.log_status != 200:
            return _error(self.log_status, "No.")
        with zstandard.ZstdDecompressor().stream_reader(await request.body()) as reader:
            self.logs.append(json.loads(reader.read()))
        return JSONResponse({"id": str(uuid.uuid4())})

    async def _post_job(self, request: Request) -> Response:
        with zstandard.ZstdDecompressor().stream_reader(await request.body(), read_across_frames=True) as reader:
            raw = reader.read()
        if faults := self.faults(json.loads(raw)):
            details = [{"loc": ["body", *loc], "msg": "must be a number", "type": "x"} for loc in faults]
            message = {"message": "A field is wrong.", "type": "x", "code": None, "param": None}
            return JSONResponse({"error": message, "detail": details}, 422)
        key, sha256 = request.headers["idempotency-key"], hashlib.sha256(raw).hexdigest()
        job = next((job for job in self.jobs if job.key == key), None)
        if job is None:
            job = Job(str(uuid.uuid4()), key, json.loads(raw), sha256)
            self.jobs.append(job)
            await self._queue.put(job)
        if job.body_sha256 != sha256:
            return _error(409, "This Idempotency-Key was sent with another body.")
        return JSONResponse({"id": job.id})

    async def _job(self, request: Request) -> Response:
        job = self._find(request)
        times = {"created_at": TIME, "started_at": TIME, "ended_at": TIME if job.has_ended else None}
        counts = {"attempt": 1, "num_events": len(job.events), "num_gradient_steps": 2, "cancel_requested": False}
        found = {"id": job.id, "model_id": job.body["model_id"], "step": job.step, "error": None, "waiting_for": None}
        return JSONResponse({**found, "state": "succeeded" if job.step else "running", **counts, **times})

    async def _events(self, request: Request) -> Response:
        after = int(request.query_params.get("after", -1))
        return JSONResponse(_page(self._find(request).events[after + 1 :]))

    def _find(self, request: Request) -> Job:
        return next(job for job in self.jobs if job.id == request.path_params["id"])

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        name, _, pinned = body["model"].partition(":step")
        version = int(pinned) if pinned else self.step  # the name is resolved when the request is admitted
        self.completions.append((body["model"], version))
        self.completion_bodies.append(body)
        while self.holds_completion(body["model"], version):
            await asyncio.sleep(0.005)
        await asyncio.sleep(self._duration(self.completion_s))
        question = body["messages"][-1]["content"]
        choice = {
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": f"version {version}, {question}"},
            "logprobs": {"content": [{"token": "a", "logprob": -0.5, "bytes": None, "top_logprobs": []}]},
            "prompt_token_ids": [5, 6],
            "policy_version": self.claimed_version(version),
        }
        choices = [
            {"index": index, **choice, "token_ids": self.sampled_tokens(body.get("seed"), index)}
            for index in range(body.get("n", 1))
        ]
        return JSONResponse(
            {"id": "c", "object": "chat.completion", "created": 0, "model": name, "choices": choices},
            headers={"x-policy-version": str(version)},
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._queue = asyncio.Queue()  # belongs to the event loop of this start
        for job in self.jobs:
            if not job.has_ended:
                self._queue.put_nowait(job)
        training = asyncio.create_task(self._train())
        yield
        training.cancel()

    async def _train(self) -> None:
        while True:
            job = await self._queue.get()
            job.trained_on = self.step
            job.add("training_started", num_sequences=1, num_gradient_steps=2, num_trained_trajectories=4)
            for warning in self.warnings:
                job.add("warning", **warning)
            if self.trains_nothing(job):
                job.add("warning", kind="nothing_trained", message="4 have equal rewards", counts={"equal_rewards": 4})
            for step in range(0 if self.trains_nothing(job) else 2):
                await asyncio.sleep(self._duration(self.training_s) / 2)
                job.add("gradient_step", **{"loss/train": float(step), "data/step_trainer_tokens": 10.0})
            while self.holds_job(job):
                await asyncio.sleep(0.005)
            if self.fail_jobs:
                self.fail_jobs -= 1
                job.add(
                    "training_failed", error_message="Stage train: the learner ran out of memory. Use fewer tokens."
                )
                continue
            self.step += 1
            job.step = self.step
            job.add("training_ended")

    def _sample(self, seed: int | None, index: int) -> list[int]:
        """Return three tokens, the same for the same seed, as vLLM does: choice i of a request has seed + i."""
        rng = self._rng if seed is None else random.Random(seed + index)
        return [rng.randrange(1000) for _ in range(3)]

    def _duration(self, longest_s: float) -> float:
        return longest_s if self.is_constant else self._rng.uniform(0, longest_s)


def _page(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": items, "first_id": None, "last_id": None, "has_more": False}


def _error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": {"message": message, "type": "x", "code": None, "param": None}}, status, headers)


def unavailable(retry_after_s: float | None = None, status: int = 503) -> Response:
    headers = {} if retry_after_s is None else {"retry-after": str(retry_after_s)}
    return _error(status, "The engine is being replaced.", **headers)


def plain_not_found() -> Response:
    """Return the answer of Serve's proxy before it knows the routes."""
    return PlainTextResponse("Path '/v1/...' not found", 404)
