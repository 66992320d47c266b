"""Load on a server of the Tinker API, through the SDK of the environment that runs this file.

    python benchmarks/tinker_load.py URL KEY '{"base_model": "tandem/tiny", "at_once": 512, "clients": 64}'

Needs nothing but the SDK, of any version, so that `tinker_sampling.py` can run it beside servers that need another
one. Prints one line of JSON:

- `burst`: `at_once` samples that one client asks for at the same moment;
- `clients`: this many clients, each with a session of its own, that ask for their next sample once they have one. The
  first sample of each, for which it opens connections, isn't counted;

each with the number of samples and of those that failed (with the first errors), `p50_ms`, `p99_ms`, samples per
second, the CPU time of this process by sample, the HTTP statuses that the SDK got and doesn't show, and the heartbeats
that a session sent beside the load: how many, how many failed, and the slowest.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import tinker
from tinker import types

HEARTBEAT_S = 0.5
HEARTBEAT_TIMEOUT_S = 10.0  # as the SDK's own
STATUS = re.compile(r'/api/v1/(\w+)[^"]* "HTTP/\S+ (\d+)')


class Statuses(logging.Handler):
    """Counts answers other than 2xx by route and status, as httpx logs them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.counts = Counter[str]()
        logger = logging.getLogger("httpx")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        found = STATUS.search(record.getMessage())
        if found and not found[2].startswith("2"):
            self.counts[f"{found[1]} {found[2]}"] += 1

    def take(self) -> dict[str, int]:
        taken, self.counts = dict(self.counts), Counter[str]()
        return taken


class Heartbeats(threading.Thread):
    """Sends heartbeats of a session beside the load, as an operator's view of it."""

    def __init__(self, url: str, key: str, session_id: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self._session_id = url, key, session_id
        self._ended = threading.Event()
        self.seconds: list[float] = []
        self.failed = 0

    def run(self) -> None:
        with httpx.Client(base_url=self._url, headers={"X-API-Key": self._key}, timeout=HEARTBEAT_TIMEOUT_S) as http:
            while not self._ended.wait(HEARTBEAT_S):
                began = time.perf_counter()
                try:
                    body = {"session_id": self._session_id, "type": "session_heartbeat"}
                    is_alive = http.post("/api/v1/session_heartbeat", json=body).is_success
                except httpx.HTTPError:
                    is_alive = False
                self.failed += not is_alive
                self.seconds.append(time.perf_counter() - began)

    def end(self) -> dict[str, float]:
        self._ended.set()
        self.join()
        slowest = 1e3 * max(self.seconds, default=0.0)
        return {"sent": len(self.seconds), "failed": self.failed, "slowest_ms": round(slowest, 1)}


class Load:
    def __init__(self, url: str, key: str, options: dict[str, Any]) -> None:
        self._url, self._key, self._options = url, key, options
        self._rng, self._statuses = random.Random(options.get("seed", 0)), Statuses()

    def client(self) -> tuple[tinker.ServiceClient, tinker.SamplingClient]:
        """Return a sampling client with a session of its own, and the session's id."""
        service = tinker.ServiceClient(base_url=self._url, api_key=self._key)
        sampler = service.create_sampling_client(base_model=self._options["base_model"])
        return service, sampler.result() if hasattr(sampler, "result") else sampler  # newer SDKs return a future

    async def sample(self, sampler: tinker.SamplingClient, seconds: list[float], errors: list[str]) -> None:
        prompt = [self._rng.randrange(3, self._options["vocabulary"]) for _ in range(self._options["prompt_tokens"])]
        params = types.SamplingParams(max_tokens=self._options["max_tokens"], temperature=1.0)
        began = time.perf_counter()
        try:
            answer = await sampler.sample_async(types.ModelInput.from_ints(prompt), 1, params)
            assert answer.sequences[0].tokens
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:300])
        else:
            seconds.append(time.perf_counter() - began)

    async def keep_asking(
        self, sampler: tinker.SamplingClient, until: float, seconds: list[float], errors: list[str]
    ) -> None:
        while time.perf_counter() < until:
            await self.sample(sampler, seconds, errors)

    def burst(self) -> dict[str, Any]:
        service, sampler = self.client()
        asyncio.run(self.sample(sampler, [], []))  # opens connections
        asks = self._options["at_once"]
        return self._measured(
            service, lambda seconds, errors: [self.sample(sampler, seconds, errors) for _ in range(asks)]
        )

    def clients(self) -> dict[str, Any]:
        made = [self.client() for _ in range(self._options["clients"])]
        asyncio.run(self._once_each([sampler for _, sampler in made]))  # opens connections
        until = time.perf_counter() + self._options["seconds"]
        return self._measured(
            made[0][0],
            lambda seconds, errors: [self.keep_asking(sampler, until, seconds, errors) for _, sampler in made],
        )

    async def _once_each(self, samplers: Sequence[tinker.SamplingClient]) -> None:
        await asyncio.gather(*(self.sample(sampler, [], []) for sampler in samplers))

    def _measured(
        self, service: tinker.ServiceClient, work: Callable[[list[float], list[str]], list[Coroutine[Any, Any, None]]]
    ) -> dict[str, Any]:
        seconds: list[float] = []
        errors: list[str] = []
        heartbeats = Heartbeats(self._url, self._key, service.holder.get_session_id())
        heartbeats.start()
        self._statuses.take()
        cpu, began = time.process_time(), time.perf_counter()

        async def all_of_it() -> None:
            await asyncio.gather(*work(seconds, errors))

        asyncio.run(all_of_it())
        elapsed, cpu = time.perf_counter() - began, time.process_time() - cpu
        in_order = sorted(seconds) or [0.0]
        return {
            "samples": len(seconds),
            "failed": len(errors),
            "errors": errors[:3],
            "p50_ms": round(1e3 * in_order[len(in_order) // 2], 1),
            "p99_ms": round(1e3 * in_order[int(0.99 * (len(in_order) - 1))], 1),
            "per_s": round(len(seconds) / elapsed, 2),
            "client_cpu_ms": round(1e3 * cpu / max(len(seconds), 1), 2),
            "statuses": self._statuses.take(),
            "heartbeats": heartbeats.end(),
        }


def main() -> None:
    warnings.filterwarnings("ignore")
    url, key, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    load = Load(url, key, options)
    print(json.dumps({"burst": load.burst(), "clients": load.clients()}), flush=True)


if __name__ == "__main__":
    main()
