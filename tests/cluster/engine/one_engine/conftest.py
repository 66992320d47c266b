"""The engine that the tests of this folder share, its policy versions, and their reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from engine_client import start_engine
from policy_reference import PolicyReference, write_adapter

from one_engine.shared_engine import CONFIG, MAX_MODEL_LEN, OTHER_SETTINGS, VERSIONS, Client
from tandem.cluster.artifacts import Artifacts
from tandem.rl.settings import LoraSettings

LAST = "test_engine_core_process.py"  # ends the engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests of LAST after all others of this folder."""
    places = [place for place, item in enumerate(items) if item.path.parent == Path(__file__).parent]
    ordered = sorted([items[place] for place in places], key=lambda item: item.path.name == LAST)
    for place, item in zip(places, ordered, strict=True):
        items[place] = item


@pytest.fixture(scope="package")
def artifacts(tiny_model, tmp_path_factory) -> Artifacts:
    artifacts = Artifacts(str(tmp_path_factory.mktemp("artifacts")))
    for seed, digest in enumerate(VERSIONS):
        scale, lora = 0.05 if seed else 0.0, OTHER_SETTINGS.get(seed)
        write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed, scale, lora)
    return artifacts


@pytest.fixture(scope="package")
def reference(tiny_model, artifacts) -> PolicyReference:
    return PolicyReference(tiny_model, {digest: artifacts.checkpoints_dir / digest for digest in VERSIONS})


@pytest.fixture(scope="package")
def client(ray_local, tiny_model, artifacts) -> Iterator[Client]:
    arguments = CONFIG, str(tiny_model), "tiny", artifacts.pull_checkpoint, MAX_MODEL_LEN, LoraSettings()
    actor, address = start_engine(tiny_model, 512, *arguments)
    yield Client(actor, address)
    ray.get(actor.stop.remote())
    ray.kill(actor)
