"""A group one of whose learners runs out of memory keeps its processes, and makes the same version."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from faulty_learners import faulty_group, forests

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.errors import StageError
from tandem.cluster.learners.group import LearnerGroup
from tandem.rl.checkpoints import read_checkpoint
from tandem.rl.config import LossConfig


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def group(ray_local: None, artifacts: Artifacts) -> Iterator[LearnerGroup]:
    with pytest.MonkeyPatch.context() as patch:
        group = faulty_group(patch, str(artifacts.checkpoints_dir.parent), 2)
        yield group
        group.stop()


def train(group: LearnerGroup, artifacts: Artifacts, digest: str, rows: list[Any], warnings: list[Any]) -> Any:
    """Return the adapter after two steps over the rows."""
    with group.training(f"job {len(warnings)}", 100, warnings.append) as training:
        training.load(digest)
        for _ in range(2):
            training.step(rows, LossConfig(), 1e-4, 256)
        training.finish()
        return read_checkpoint(artifacts.checkpoints_dir / training.save({"base_model": "tandem/tiny"})).adapter


def test_a_learner_out_of_memory_costs_a_repetition(group: LearnerGroup, artifacts: Artifacts) -> None:
    initial = ResolvedBaseModel(group._base).write_initial_version(artifacts)
    rows, warnings = forests(0, 1), list[Any]()
    expected = train(group, artifacts, initial, rows, warnings)
    assert warnings == []

    def pids() -> list[int]:
        return ray.get([worker.__ray_call__.remote(lambda _: os.getpid()) for worker in group.workers])

    before = pids()
    ray.get(group.workers[1].limit_memory.remote(30))  # on rank 1 only
    for _ in ("it fails once, and warns", "it knows, and warns"):
        found, warnings = train(group, artifacts, initial, rows, warnings), []
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=0)
    assert pids() == before

    with group.training("b", 100, warnings.append) as training:
        training.load(initial)
        training.step(rows, LossConfig(), 1e-4, 256)
        [warning] = warnings
        assert warning["kind"] == "rows_split"
        assert warning["counts"] == {"row_tokens": 49, "max_row_tokens": 24, "logprob_chunk_size": 128}
        ray.get(group.workers[1].limit_memory.remote(8))
        with pytest.raises(StageError, match=r"group 0, trajectory \d \(\d+ tokens\).*tried to allocate") as caught:
            training.step(rows, LossConfig(), 1e-4, 256)
        assert caught.value.stage == "step" and not caught.value.retryable
        ray.get(group.workers[1].limit_memory.remote(1000))
        training.step(rows, LossConfig(), 1e-4, 256)
    assert pids() == before


def test_scoring_splits_rows_too(group: LearnerGroup, artifacts: Artifacts) -> None:
    initial = ResolvedBaseModel(group._base).write_initial_version(artifacts)
    rows = forests(0, 1)
    with group.training("a", 100) as training:
        training.load(initial)
        first, second = training.scorers(initial, 256)
        expected = first(rows, 60.0)
        ray.get(group.workers[1].limit_memory.remote(30))
        for own, wanted in zip(second(rows, 60.0), expected, strict=True):
            torch.testing.assert_close(own, wanted, atol=1e-5, rtol=0, equal_nan=True)
        ray.get(group.workers[1].limit_memory.remote(8))
        with pytest.raises(StageError, match="memory") as caught:
            second(rows, 60.0)
        assert not caught.value.retryable
