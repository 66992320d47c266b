"""The benchmarks are programs, not an installed package: tests find their modules where they are."""

import os
import sys

import pytest
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))


@pytest.fixture(autouse=True, scope="module")
def own_environment():
    """TRL imports vLLM, which sets variables that the engines of other tests would inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def small(tiny_model):
    """Settings of a run that takes about a second."""
    from loss_comparison.settings import Settings

    return Settings(
        base_model=str(tiny_model),
        num_versions=3,
        groups_per_version=3,
        group_size=4,
        num_eval_tasks=6,
        learning_rate=1e-2,
        packed_sequence_length=128,
        eval_every=1,
    )
