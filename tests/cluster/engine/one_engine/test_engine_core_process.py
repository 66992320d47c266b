"""The process of vLLM's core: how it starts, what it does while idle, and its death, which ends the shared engine."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import ray

from one_engine.shared_engine import LONG, MANY, MESSAGES, VERSIONS, random_sequences
from tandem.cluster.errors import EngineDeadError

pytestmark = pytest.mark.usefixtures("ray_local")


def test_an_idle_core_has_no_threads_that_look_for_peers(client):
    """Each such thread would wake up 100 times a second."""
    core = client.core_process()
    threads = [file.read_text() for file in Path(f"/proc/{core.pid}/task").glob("*/comm")]
    assert threads and not any("gloo" in name for name in threads)


def test_a_core_is_forked_from_a_process_that_has_imported_vllm(client):
    assert any("forkserver" in word for word in client.core_process().parent().cmdline())


def test_the_death_of_the_core_is_told_to_all(client):
    """This must be the last test of the folder: the engine isn't restarted."""
    ray.get(client.actor.check_health.remote())
    answering = client.start(VERSIONS[1], LONG)
    scored = client.actor.score.remote(random_sequences(100, seed=4), VERSIONS[1])
    client.wait_until_busy(MANY + 20)
    client.core_process().send_signal(signal.SIGKILL)
    assert client.finish(answering).status == 503
    with pytest.raises(EngineDeadError):
        ray.get(scored)
    with pytest.raises(EngineDeadError):
        ray.get(client.actor.check_health.remote())
    assert client.ask(VERSIONS[1], {"messages": MESSAGES}).status == 503
    with pytest.raises(EngineDeadError):
        client.score([[5, 6]], VERSIONS[1])
