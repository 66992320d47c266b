"""Engines that hang or are killed, on real vLLM: every waiting request fails, and no process stays behind."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import Future
from contextlib import suppress

import psutil
import pytest
import ray
from engine_client import ask, core_of, start_engine, status_of
from policy_reference import write_adapter

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import EngineConfig
from tandem.cluster.errors import EngineDeadError
from tandem.rl.settings import LoraSettings

CONFIG = EngineConfig(max_num_seqs=8, kv_cache_memory_bytes=1 << 20)
WAIT_S = 180  # longer than the default limit on a core's silence
LOADED, OTHER = DIGESTS = [f"{k:064x}" for k in range(2)]


@pytest.fixture
def engine(ray_local, tiny_model, tmp_path):
    artifacts = Artifacts(str(tmp_path))
    for digest in DIGESTS:
        write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed=0, scale=0.0)
    arguments = CONFIG, str(tiny_model), "tiny", artifacts.pull_checkpoint, 256, LoraSettings()
    actor, address = start_engine(tiny_model, 64, *arguments)
    yield actor, address
    ray.kill(actor)


def wait_until_gone(process: psutil.Process) -> None:
    deadline = time.monotonic() + 300
    with suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{process} still runs"
            time.sleep(0.1)


def answers(address, digest: str) -> Future[int]:
    """Request a long completion. Return a future of its status."""
    body = {"messages": [{"role": "user", "content": "3, 17 or 8?"}], "n": 8, "ignore_eos": True}
    return status_of(ask(address, digest, body))


def test_a_stopped_core_is_ended_and_told_to_who_waits_for_it(engine):
    engine, address = engine
    core = core_of(engine)
    ray.get(engine.score.remote([[5, 6, 7]], LOADED), timeout=WAIT_S)
    core.send_signal(signal.SIGSTOP)
    ray.get(engine.__ray_call__.remote(lambda engine: setattr(engine._core, "_answer_s", 2.0)), timeout=WAIT_S)
    completions = [answers(address, digest) for digest in DIGESTS]
    scores = [engine.score.remote([[5, 6, 7]], digest) for digest in DIGESTS]
    assert [completion.result(timeout=WAIT_S) for completion in completions] == [503, 503]
    for scored in scores:
        with pytest.raises(EngineDeadError):
            ray.get(scored, timeout=WAIT_S)
    with pytest.raises(EngineDeadError):
        ray.get(engine.check_health.remote(), timeout=WAIT_S)
    wait_until_gone(core)


@pytest.mark.slow
def test_a_killed_replica_leaves_no_core_behind_not_even_a_stopped_one(engine):
    core = core_of(engine[0])
    replica = psutil.Process(ray.get(engine[0].__ray_call__.remote(lambda _: os.getpid())))
    core.send_signal(signal.SIGSTOP)
    replica.send_signal(signal.SIGKILL)
    wait_until_gone(core)
