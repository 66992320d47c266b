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
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import httpx
import zstandard
from ingest import POST_S, Watch, post, write_body

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
from service_process import ServiceProcess

BASE = "tandem/tiny"
LIMITS = {
    "TANDEM_LIMITS__MAX_OPEN_JOBS": "4000",
    "TANDEM_LIMITS__MAX_OPEN_JOBS_PER_PROJECT": "4000",
    "TANDEM_LIMITS__MIN_FREE_DISK_BYTES": "0",
}
CODINGS = {"identity": lambda body: body, "gzip": lambda body: gzip.compress(body, 1), "zstd": zstandard.compress}


def measure_service(options: argparse.Namespace) -> dict[str, Any]:
    """Run a service and post to it. Return the results by experiment."""
    with tempfile.TemporaryDirectory() as home, ServiceProcess(Path(home), LIMITS) as service:
        key = service.create_key()
        service.start()
        headers = {"Authorization": f"Bearer {key}"}
        with service.http(key, POST_S) as http:
            answer = http.post("/preview/models", json={"project": "bench", "name": "m", "base_model": BASE})
            model = answer.raise_for_status().json()
            small, body = Path(home) / "small.json", Path(home) / "body.json"
            write_body(small, model["id"], 0, options.tokens, 2)
            write_body(body, model["id"], int(options.megabytes * 1e6), options.tokens, options.group_size)
            wait_until_idle(http, post(service.port, headers, small))
            [api] = [process.pid for process in service.processes("ray::ServeReplica:tandem:api")]
            found: dict[str, Any] = {}
            for coding, encode in CODINGS.items():
                sent = Path(home) / "sent"
                sent.write_bytes(encode(body.read_bytes()))
                own = headers if coding == "identity" else headers | {"Content-Encoding": coding}
                found[coding] = measure_post(service, own, headers, sent, body.stat().st_size, api, http)
            found["jobs_at_once"] = asyncio.run(jobs_at_once(service.url, headers, small.read_bytes(), options.at_once))
            name = f"{model['entity']}/bench/{model['name']}"
            found["completions_at_once"] = asyncio.run(completions_at_once(service.url, headers, name, options.at_once))
    return found


def measure_post(
    service: ServiceProcess,
    own: dict[str, str],
    headers: dict[str, str],
    sent: Path,
    num_bytes: int,
    api: int,
    http: httpx.Client,
) -> dict[str, float]:
    """Post a body while another client sends small requests. `mb_per_s` counts the decoded bytes until acceptance."""
    watch = Watch(service.url, headers, api)
    watch.start()
    time.sleep(1)
    began = time.monotonic()
    job = post(service.port, own, sent)
    ended = time.monotonic()
    watch.stop()
    http.post(f"/preview/training-jobs/{job}/cancel").raise_for_status()
    wait_until_idle(http, job)
    busy = watch.between(began, ended) or [0.0]
    return {
        "body_mb": num_bytes / 1e6,
        "sent_mb": sent.stat().st_size / 1e6,
        "post_s": ended - began,
        "mb_per_s": num_bytes / 1e6 / (ended - began),
        "idle_longest_s": max(watch.between(0, began)),
        "busy_median_s": statistics.median(busy),
        "busy_longest_s": max(busy),
        "api_rss_peak_mb": watch.rss / 1e6,
    }


def wait_until_idle(http: httpx.Client, job: str) -> None:
    while http.get(f"/preview/training-jobs/{job}").raise_for_status().json()["state"] in ("queued", "running"):
        time.sleep(0.2)


async def jobs_at_once(url: str, headers: dict[str, str], body: bytes, count: int) -> dict[str, Any]:
    """Post the same small job from `count` clients at once, and cancel the jobs."""
    async with client(url, headers, count) as http:
        kind = {"content-type": "application/json"}
        posts = [http.post("/preview/training-jobs", content=body, headers=kind) for _ in range(count)]
        result, answers = await at_once(posts)
        jobs = [answer.json()["id"] for answer in answers if answer.status_code == 200]
        for job in jobs:
            await http.post(f"/preview/training-jobs/{job}/cancel")
    return result


async def completions_at_once(url: str, headers: dict[str, str], name: str, count: int) -> dict[str, Any]:
    body = {"model": name, "messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 4}
    async with client(url, headers, count) as http:
        result, _ = await at_once([http.post("/chat/completions", json=body) for _ in range(count)])
    return result


def client(url: str, headers: dict[str, str], count: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=count, max_keepalive_connections=count)
    return httpx.AsyncClient(base_url=f"{url}/v1", headers=headers, timeout=POST_S, limits=limits)


async def at_once(requests: list[Coroutine[Any, Any, httpx.Response]]) -> tuple[dict[str, Any], list[httpx.Response]]:
    """Return how all of them were answered, and the answers. A request that gets none counts under its error."""
    began = time.monotonic()
    found = await asyncio.gather(*requests, return_exceptions=True)
    answers = [answer for answer in found if isinstance(answer, httpx.Response)]
    kinds = Counter(str(f.status_code) if isinstance(f, httpx.Response) else type(f).__name__ for f in found)
    return {"requests": len(found), "seconds": time.monotonic() - began, "answers": dict(kinds)}, answers
