"""Large payloads and many requests at once, through the proxy of a whole service (`ingest.py --proxy`)."""

from __future__ import annotations

import argparse
import asyncio
import gzip
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import zstandard
from ingest import POST_S, Watch, post, write_body

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from service_process import ServiceProcess

BASE = "tandem/tiny"
SEVERAL = 4
"""Payloads at once: one is received while another is checked."""
PROCESSES = {
    "proxy": "ray::ProxyActor",
    "api": "ray::ServeReplica:tandem:api",
    "preparation": "ray::PreparationWorker",
}
"""Titles of the processes that a payload passes."""
LIMITS = {
    "TANDEM_LIMITS__MAX_OPEN_JOBS": "4000",
    "TANDEM_LIMITS__MAX_OPEN_JOBS_PER_PROJECT": "4000",
    "TANDEM_LIMITS__MIN_FREE_DISK_BYTES": "0",
}
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "identity": lambda body: body,
    "gzip": lambda body: gzip.compress(body, 1),
    "zstd": zstandard.compress,
}


@dataclass(frozen=True)
class Target:
    """A running service, the headers of a key, and the pids of its processes by the start of their title."""

    port: int
    headers: dict[str, str]
    pids: Callable[[str], list[int]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def measure_service(options: argparse.Namespace) -> dict[str, Any]:
    """Start a service and measure it."""
    with tempfile.TemporaryDirectory() as home, ServiceProcess(Path(home), LIMITS) as service:
        key = service.create_key()
        service.start()
        headers = {"Authorization": f"Bearer {key}"}
        target = Target(service.port, headers, lambda title: [p.pid for p in service.processes(title)])
        with service.http(key, POST_S) as http, tempfile.TemporaryDirectory() as directory:
            return measure_target(target, http, Path(directory), options)


def measure_target(
    target: Target, http: httpx.Client, directory: Path, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Return the results by experiment."""
    answer = http.post("/preview/models", json={"project": "bench", "name": "ingest", "base_model": BASE})
    model = answer.raise_for_status().json()
    small, body, sent = directory / "small.json", directory / "body.json", directory / "sent"
    write_body(small, model["id"], 0, options.tokens, 2)
    write_body(body, model["id"], int(options.megabytes * 1e6), options.tokens, options.group_size)
    wait_until_idle(http, post(target.port, target.headers, small))
    found: dict[str, dict[str, Any]] = {}
    for coding, encode in CODINGS.items():
        sent.write_bytes(encode(body.read_bytes()))
        found[coding] = measure_posts(target, coding, sent, body.stat().st_size, http)
    sent.write_bytes(body.read_bytes())
    found["several_payloads"] = measure_posts(target, "identity", sent, body.stat().st_size, http, SEVERAL)
    found["jobs_at_once"] = asyncio.run(jobs_at_once(target, small.read_bytes(), options.at_once))
    name = f"{model['entity']}/bench/{model['name']}"
    found["completions_at_once"] = asyncio.run(completions_at_once(target, name, options.at_once))
    return found


def measure_posts(
    target: Target, coding: str, sent: Path, num_bytes: int, http: httpx.Client, at_once: int = 1
) -> dict[str, Any]:
    """Post a body, or several at once, while another client sends small requests.

    `mb_per_s` counts the decoded bytes until all are accepted.
    """
    pids = {role: target.pids(title) for role, title in PROCESSES.items()}
    watch = Watch(target.url, target.headers, pids["api"][0])
    watch.start()
    time.sleep(1)
    used = {role: cpu_seconds(own) for role, own in pids.items()}
    began = time.monotonic()
    headers = target.headers | {"Content-Encoding": coding}
    with ThreadPoolExecutor(at_once) as pool:
        jobs = list(pool.map(lambda _: post(target.port, headers, sent), range(at_once)))
    ended = time.monotonic()
    used = {role: cpu_seconds(own) - used[role] for role, own in pids.items()}
    watch.stop()
    for job in jobs:
        http.post(f"/preview/training-jobs/{job}/cancel").raise_for_status()
    for job in jobs:
        wait_until_idle(http, job)
    busy = watch.between(began, ended) or [0.0]
    return {
        "body_mb": num_bytes / 1e6,
        "sent_mb": sent.stat().st_size / 1e6,
        "post_s": ended - began,
        "mb_per_s": at_once * num_bytes / 1e6 / (ended - began),
        "idle_longest_s": max(watch.between(0, began)),
        "busy_median_s": statistics.median(busy),
        "busy_longest_s": max(busy),
        "api_rss_peak_mb": watch.rss / 1e6,
        "cpu_s": {role: round(seconds, 3) for role, seconds in used.items()},
    }


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of processes, with that of threads that have ended."""
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def wait_until_idle(http: httpx.Client, job: str) -> None:
    while http.get(f"/preview/training-jobs/{job}").raise_for_status().json()["state"] in ("queued", "running"):
        time.sleep(0.2)


async def jobs_at_once(target: Target, body: bytes, count: int) -> dict[str, Any]:
    """Post the same small job from `count` clients at once, and cancel the jobs."""
    async with client(target, count) as http:
        headers = [{"content-type": "application/json", "idempotency-key": str(number)} for number in range(count)]
        posts = [http.post("/preview/training-jobs", content=body, headers=own) for own in headers]
        result, answers = await at_once(posts)
        jobs = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        for job in jobs:
            await http.post(f"/preview/training-jobs/{job}/cancel")
    return result


async def completions_at_once(target: Target, name: str, count: int) -> dict[str, Any]:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    async with client(target, count) as http:
        result, _ = await at_once([http.post("/chat/completions", json=body) for _ in range(count)])
    return result


def client(target: Target, count: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    return httpx.AsyncClient(base_url=f"{target.url}/v1", headers=target.headers, timeout=POST_S, limits=limits)


async def at_once(requests: list[Coroutine[Any, Any, httpx.Response]]) -> tuple[dict[str, Any], list[httpx.Response]]:
    """Return how all of them were answered, and the answers. A request that gets none counts under its error."""
    began = time.monotonic()
    found = await asyncio.gather(*requests, return_exceptions=True)
    answers = [answer for answer in found if isinstance(answer, httpx.Response)]
    kinds = Counter(str(f.status_code) if isinstance(f, httpx.Response) else type(f).__name__ for f in found)
    return {"requests": len(found), "seconds": time.monotonic() - began, "answers": dict(kinds)}, answers
