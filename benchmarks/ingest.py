"""The effect of receiving a large training job on the API process: latency of other requests, and memory.

    .venv/bin/python benchmarks/ingest.py --output benchmarks/results/ingest.json

This starts the API on a free port in a separate process, with a store, artifacts and a process that checks payloads,
posts one job of about `--megabytes` (trajectories of `--tokens` sampled tokens with logprobs), and meanwhile requests
`GET /v1/models` every 20 ms. `--before` also measures another revision, which serves with its own copy of this script.
The results are, for each:

- `post_s`: from the first byte sent to the job's id; `cpu_s`: CPU time of the API and its processes meanwhile;
- `idle_longest_s`, `busy_longest_s`: the slowest other request, in the seconds before the job and during it;
- `busy_p99_s`: 99 % of the other requests during the job were faster;
- `api_rss_before_mb`, `api_rss_peak_mb`: memory of the API process;
- `api_growth_per_body`: its growth over the size of the body;
- `checker_rss_peak_mb`: memory of the process that checks payloads, if there is one.

`--proxy` measures a whole service instead, behind Ray Serve's proxy: `mb_per_s` of a payload from the first byte sent
to the job's id, plain, compressed, and several at once, with the latency of other requests meanwhile; and the answers
to `--at-once` jobs, and then completions, that are sent at once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
POLL_S = 0.02
IDLE_S = 5.0
START_S = 300.0
POST_S = 1200.0
CHECKER = "spawn_main"


def serve(directory: Path) -> None:
    """Run the API as a Serve replica does, without engine and coordinator."""
    import socket

    import uvicorn

    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.base_models import ResolvedBaseModel
    from tandem.cluster.config import TandemConfig
    from tandem.serve.api.application import create_app
    from tandem.serve.api.services import Services
    from tandem.serve.keys import create_key
    from tandem.serve.store.store import Store

    config = TandemConfig(home=directory, limits={"min_free_disk_bytes": 0})
    store, artifacts = Store(config.resolved_store_url), Artifacts(config.artifacts_root)
    bases = {base.name: ResolvedBaseModel(base) for base in config.base_models}
    unused: Any = None  # no request here needs an engine, trials or the coordinator
    preparation: Any = Checker(bases, artifacts)  # of which requests need the checks alone
    services = Services(config, store, artifacts, unused, bases, preparation, unused, unused, unused)
    model = store.models.add("team", "bench", "agent", config.base_models[0].name, return_existing=True)
    app = create_app(services)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ready = {"port": listener.getsockname()[1], "key": create_key(store, "bench", "team"), "model_id": model.id}
        (directory / "ready.json.part").write_text(json.dumps(ready))
        (directory / "ready.json.part").rename(directory / "ready.json")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


class Checker:
    """The Preparation of production, with a plain process instead of a Ray actor."""

    def __init__(self, *arguments: Any):
        from tandem.cluster.jobs.preparation import PreparationWorker

        self._worker = PreparationWorker(*arguments)
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    def begin_check(self, *_: Any) -> None:
        """Do nothing: each call runs on a worker of its own."""

    def check(self, *arguments: Any, arrived: Path) -> None:
        self._pool.submit(self._worker.check, *arguments).result()


def write_body(path: Path, model_id: str, num_bytes: int, num_tokens: int, group_size: int) -> None:
    """Write a job as rollout code sends it: each choice with token ids and logprobs."""
    pick = random.Random(0)

    def trajectory() -> dict[str, Any]:
        ids = [pick.randrange(10, 250) for _ in range(num_tokens)]
        content: list[dict[str, Any]] = [
            {"token": f"token_id:{id}", "logprob": -pick.expovariate(1), "bytes": None, "top_logprobs": []}
            for id in ids
        ]
        choice = {
            "finish_reason": "length", "index": 0, "logprobs": {"content": content, "refusal": None},
            "message": {"role": "assistant", "content": 'It is "7".\n' * (num_tokens // 4), "refusal": None},
            "token_ids": ids,
        }  # fmt: skip
        question = {"role": "user", "content": "Which is the largest: 3, 17 or 8?"}
        return {"messages_and_choices": [question, choice], "reward": pick.random()}

    with open(path, "w") as file:
        file.write(f'{{"model_id": "{model_id}", "trajectory_groups": [')
        group = json.dumps({"trajectories": [trajectory() for _ in range(group_size)]})
        file.write(group)
        while file.tell() < num_bytes:
            file.write(", " + json.dumps({"trajectories": [trajectory() for _ in range(group_size)]}))
        file.write("]}")


class Watch(threading.Thread):
    """Requests models continuously, and reads the memory of the API process and of the one that checks payloads."""

    def __init__(self, url: str, headers: dict[str, str], pid: int):
        super().__init__(daemon=True)
        self._http = httpx.Client(base_url=url, headers=headers, timeout=POST_S)
        self._process = psutil.Process(pid)
        self._ended = threading.Event()
        self.latencies: list[tuple[float, float]] = []  # when sent, seconds until answered
        self.rss = self.checker_rss = 0

    def run(self) -> None:
        threading.Thread(target=self._weigh, daemon=True).start()
        while not self._ended.wait(POLL_S):
            sent = time.monotonic()
            self._http.get("/v1/models").raise_for_status()
            self.latencies.append((sent, time.monotonic() - sent))

    def _weigh(self) -> None:
        others: list[psutil.Process] = []
        while not self._ended.wait(POLL_S):
            self.rss = max(self.rss, self._process.memory_info().rss)
            if len(self.latencies) % 50 == 0:
                others = [p for p in self._process.children(recursive=True) if CHECKER in " ".join(p.cmdline())]
            self.checker_rss = max([self.checker_rss, *(p.memory_info().rss for p in others if p.is_running())])

    def between(self, start: float, end: float) -> list[float]:
        return [took for sent, took in self.latencies if start <= sent <= end]

    def stop(self) -> None:
        self._ended.set()
        self.join(POST_S)


def post(port: int, headers: dict[str, str], body: Path) -> str:
    """Post a job and return its id."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=POST_S, blocksize=1 << 20)
    with open(body, "rb") as file:
        length = {"Content-Length": str(body.stat().st_size), "Content-Type": "application/json"}
        own = {"Idempotency-Key": uuid.uuid4().hex}  # the same body, posted again, is another job
        connection.request("POST", "/v1/preview/training-jobs", file, {**headers, **length, **own})
        response = connection.getresponse()
        answer = response.read()
    if response.status != 200:
        raise RuntimeError(f"The job was rejected: {response.status} {answer[:500]!r}")
    return str(json.loads(answer)["id"])


def measure(code: Path, options: argparse.Namespace) -> dict[str, float]:
    """Run the API of the checkout at `code` and post the job to it."""
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
        api = subprocess.Popen(
            [sys.executable, code / "benchmarks/ingest.py", "--serve", directory],
            env=environment,
            cwd=code,
            start_new_session=True,
        )
        try:
            ready = wait_for(directory / "ready.json", api)
            headers = {"Authorization": f"Bearer {ready['key']}"}
            body, small = directory / "body.json", directory / "small.json"
            write_body(small, ready["model_id"], 0, options.tokens, 2)
            write_body(body, ready["model_id"], int(options.megabytes * 1e6), options.tokens, options.group_size)
            post(ready["port"], headers, small)  # loads the tokenizer
            watch = Watch(f"http://127.0.0.1:{ready['port']}", headers, api.pid)
            watch.start()
            time.sleep(IDLE_S)
            used, before, started = cpu_seconds(api.pid), watch.rss, time.monotonic()
            post(ready["port"], headers, body)
            ended, used = time.monotonic(), cpu_seconds(api.pid) - used
            watch.stop()
        finally:
            os.killpg(api.pid, signal.SIGTERM)  # the process that checks too
            api.wait(60)
        idle, busy = watch.between(0, started - 0.5), watch.between(started, ended) or [0.0]
        num_bytes = body.stat().st_size
    return {
        "body_mb": num_bytes / 1e6,
        "post_s": ended - started,
        "cpu_s": used,
        "num_other_requests": len(busy),
        "idle_longest_s": max(idle),
        "busy_longest_s": max(busy),
        "busy_p99_s": statistics.quantiles(busy, n=100)[-1] if len(busy) > 1 else busy[0],
        "api_rss_before_mb": before / 1e6,
        "api_rss_peak_mb": watch.rss / 1e6,
        "api_growth_per_body": (watch.rss - before) / num_bytes,
        "checker_rss_peak_mb": watch.checker_rss / 1e6,
    }


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and of those below it."""
    process = psutil.Process(pid)
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


def wait_for(file: Path, api: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while not file.exists():
        if api.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("The API didn't start.")
        time.sleep(0.1)
    ready: dict[str, Any] = json.loads(file.read_text())
    return ready


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=200)
    parser.add_argument("--tokens", type=int, default=900, help="sampled tokens of a trajectory")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--before", metavar="REVISION", help="also measure the code of this revision")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "ingest.json")
    parser.add_argument("--proxy", action="store_true", help="measure a whole service, behind its proxy")
    parser.add_argument("--at-once", type=int, default=512, help="requests at once, with --proxy")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve(options.serve)
    results: dict[str, dict[str, Any]] = {}
    if options.proxy:
        from ingest_proxy import measure_service

        write(measure_service(options), options.output)
        return
    if options.before:
        with tempfile.TemporaryDirectory() as temporary:
            archive = subprocess.run(["git", "archive", options.before], cwd=ROOT, stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", temporary], input=archive.stdout, check=True)
            results[f"before ({options.before})"] = measure(Path(temporary), options)
    results["now"] = measure(ROOT, options)
    write(results, options.output)


def write(results: dict[str, dict[str, Any]], output: Path) -> None:
    rounded = {
        name: {key: round(value, 3) if isinstance(value, float) else value for key, value in result.items()}
        for name, result in results.items()
    }
    output.write_text(json.dumps(rounded, indent=2) + "\n")
    print(output.read_text())


if __name__ == "__main__":
    main()
