"""The CPU time that the statistics of an engine cost, by request and by generated token.

    .venv/bin/python benchmarks/engine_stats.py --output benchmarks/results/engine_stats.json

Starts one engine of the built-in tiny model for each contender and sends all of them the same load by turns, one at a
time: `off` collects no statistics, `tandem` is the service's own (`tandem.cluster.engine.metrics.engine_stats`), and
`vllm` is vLLM's logger for Ray. A round is a batch of completions of equal length. The JSON has the medians over the
rounds of the CPU time of an engine's processes by request and token, and those of each round's difference to `off`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import ray

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.cluster.engine.metrics.engine_stats import EngineStats
from tandem.cluster.engine.requests.headers import DIGEST_HEADER, MODEL_HEADER, TOKEN_HEADER, VERSION_HEADER
from tandem.cluster.engine.server import EngineAddress, EngineServer
from tandem.cluster.processes.local_ray import local_ray

CONTENDERS = ("off", "tandem", "vllm")
REQUESTS, TOKENS, CLIENTS = 32, 64, 16


class VllmStats(EngineStats):
    """vLLM's own logger for Ray in place of Tandem's."""

    def logger(self) -> Any:
        from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger

        return RayPrometheusStatLogger


class MeasuredEngine(Engine):
    async def begin(self, contender: str) -> EngineAddress:
        """Start with the statistics of a contender."""
        if contender == "vllm":
            self.stats = VllmStats(self._served_name)
        if contender == "off":
            self.stats = None  # type: ignore[assignment]  # then vLLM collects none
        await self.start()
        self._server = EngineServer(self.completions, contender)
        return await self._server.start("127.0.0.1")

    def cpu_s(self) -> float:
        """Return the CPU time of this process and of its children."""
        own = psutil.Process(os.getpid())
        times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
        return sum(each.user + each.system for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="at least 2")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        memory = 100 << 20
        with local_ray(
            Path(home) / "token", num_cpus=4, log_to_driver=False, logging_level="ERROR", object_store_memory=memory
        ):
            found = measure(Path(home), arguments.rounds)
    print(json.dumps(found, indent=1))
    if arguments.output:
        arguments.output.write_text(json.dumps(found, indent=1) + "\n")


def measure(home: Path, rounds: int) -> dict[str, Any]:
    base, artifacts = ResolvedBaseModel(TINY), Artifacts(str(home / "artifacts"))
    digest = base.write_initial_version(artifacts)
    environment = {"env_vars": engine_environment("cpu", base.path)}
    remote: Any = ray.remote(MeasuredEngine).options(num_cpus=1, max_concurrency=64, runtime_env=environment)
    engines = {}
    for contender in CONTENDERS:
        fetch = artifacts.pull_checkpoint
        actor = remote.remote(TINY.engine, base.path, TINY.name, fetch, base.max_model_len, TINY.lora)
        engines[contender] = actor, ray.get(actor.begin.remote(contender))
    cpu_ms: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    wall_s: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for number in range(rounds + 1):
        for contender in sorted(CONTENDERS, key=lambda name: (number + CONTENDERS.index(name)) % len(CONTENDERS)):
            actor, address = engines[contender]
            before, began = ray.get(actor.cpu_s.remote()), time.perf_counter()
            load(address, digest)
            seconds, spent = time.perf_counter() - began, ray.get(actor.cpu_s.remote()) - before
            if number:  # the first round loads the adapter
                cpu_ms[contender].append(1000 * spent)
                wall_s[contender].append(seconds)
    return summary(cpu_ms, wall_s)


def load(address: EngineAddress, digest: str) -> None:
    headers = {TOKEN_HEADER: address.token, DIGEST_HEADER: digest, VERSION_HEADER: "0", MODEL_HEADER: "a/b/c"}
    messages = [{"role": "user", "content": "Which is the largest: 3, 17 or 8?"}]
    body = {"messages": messages, "max_tokens": TOKENS, "ignore_eos": True}
    url = f"http://{address.host}:{address.port}/v1/chat/completions"
    with httpx.Client(headers=headers, timeout=300) as client, ThreadPoolExecutor(CLIENTS) as threads:
        for response in threads.map(lambda _: client.post(url, json=body), range(REQUESTS)):
            response.raise_for_status()


def summary(cpu_ms: dict[str, list[float]], wall_s: dict[str, list[float]]) -> dict[str, Any]:
    found: dict[str, Any] = {"requests": REQUESTS, "tokens": TOKENS, "clients": CLIENTS, "rounds": len(cpu_ms["off"])}
    for contender in CONTENDERS:
        extra = [spent - off for spent, off in zip(cpu_ms[contender], cpu_ms["off"], strict=True)]
        quarters = statistics.quantiles(extra, n=4) if contender != "off" else [0.0, 0.0, 0.0]
        median = statistics.median(cpu_ms[contender])
        found[contender] = {
            "cpu_ms_per_request": median / REQUESTS,
            "cpu_us_per_token": 1000 * median / REQUESTS / TOKENS,
            "more_us_per_token": 1000 * quarters[1] / REQUESTS / TOKENS,
            "more_us_per_token_quartiles": [1000 * quarters[q] / REQUESTS / TOKENS for q in (0, 2)],
            "more_cpu_percent": 100 * quarters[1] / statistics.median(cpu_ms["off"]),
            "tokens_per_s": REQUESTS * TOKENS / statistics.median(wall_s[contender]),
        }
    return found


if __name__ == "__main__":
    main()
