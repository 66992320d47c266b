"""Versions are loaded on demand, dropped for others, and refused if they would disturb others."""

from __future__ import annotations

import shutil

import pytest
from policy_reference import write_adapter

from one_engine.shared_engine import CONFIG, MESSAGES, VERSIONS, assert_same_answer, greedy
from tandem.cluster.errors import AdapterUnavailableError
from tandem.rl.settings import LoraSettings

pytestmark = pytest.mark.usefixtures("ray_local")


def test_a_dropped_version_loads_again_and_answers_as_before(client):
    before = greedy(client, VERSIONS[1])
    for digest in VERSIONS[2:]:
        greedy(client, digest)
    adapters = client.load()["adapters"]
    assert len(adapters) == CONFIG.max_cpu_loras
    assert VERSIONS[1] not in adapters
    assert_same_answer(greedy(client, VERSIONS[1]), before)


def test_a_loaded_version_outlives_the_deletion_of_its_checkpoint(client, artifacts, tiny_model):
    digest = "d" * 64
    write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed=9, scale=0.05)
    before = greedy(client, digest)
    artifacts.delete_checkpoint(digest)
    assert_same_answer(greedy(client, digest), before)
    for other in VERSIONS[1:6]:
        greedy(client, other)
    assert client.ask(digest, {"messages": MESSAGES}).status == 404  # unloaded, and its files are deleted


def test_a_version_that_is_not_there_is_404(client):
    answer = client.ask("e" * 64, {"messages": MESSAGES})
    assert (answer.status, answer.json()["error"]["type"]) == (404, "NotFoundError")
    with pytest.raises(AdapterUnavailableError, match="e" * 64):
        client.score([[5, 6]], "e" * 64)


def test_an_adapter_that_would_disturb_others_is_refused(client, artifacts, tiny_model):
    before = greedy(client, VERSIONS[1])
    directories = {name: artifacts.checkpoints_dir / (name * 64) for name in "bc"}
    write_adapter(tiny_model, directories["b"], seed=1, scale=0.1, lora=LoraSettings(r=64))
    shutil.copytree(artifacts.checkpoints_dir / VERSIONS[1], directories["c"])
    (directories["c"] / "adapter_model.safetensors").write_bytes(b"not safetensors")
    for name, reason in (("b", "rank 64"), ("c", "header")):
        answer = client.ask(name * 64, {"messages": MESSAGES})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        with pytest.raises(AdapterUnavailableError, match=reason):
            client.score([[5, 6]], name * 64)
    assert_same_answer(greedy(client, VERSIONS[1]), before)
