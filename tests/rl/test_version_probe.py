"""The probe of a version: an engine that uses other weights is recognised, and rounding is not taken for it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.version_probe import BASE, PREVIOUS, VersionProbe

TOKENS = list(range(48))


def logprobs(seed: int, scale: float = 1.0, around: list[float] | None = None) -> list[float]:
    generator = random.Random(seed)
    return [value + generator.gauss(0, scale) for value in around or [-5.0] * (len(TOKENS) - 1)]


BEFORE = logprobs(seed=1)


def probe(change: float, dtype: str = "torch.float32") -> VersionProbe:
    """A version whose logprobs are about `change` nats away from those before."""
    return VersionProbe(TOKENS, logprobs(2, change, BEFORE), dtype, {BASE: logprobs(3), PREVIOUS: BEFORE})


@pytest.mark.parametrize("change", [0.0, 1e-6, 1e-4, 1e-3, 0.1, 3.0])
@pytest.mark.parametrize(("dtype", "rounding"), [("torch.float32", 2e-5), ("torch.bfloat16", 0.05)])
def test_an_engine_that_applies_the_version_is_right(change: float, dtype: str, rounding: float) -> None:
    own = probe(change, dtype)
    for seed in range(50):
        verdict = own.judge(logprobs(seed, rounding, own.logprobs), "torch.float32")
        assert verdict.is_right, str(verdict)


@pytest.mark.parametrize("change", [1e-4, 1e-3, 0.1, 3.0])
def test_an_engine_with_the_version_before_is_wrong_even_within_the_tolerance(change: float) -> None:
    own = probe(change)
    for seed in range(50):
        verdict = own.judge(logprobs(seed, 2e-5, BEFORE), "torch.float32")
        assert not verdict.is_right and verdict.answers_as == PREVIOUS


def test_an_engine_in_bfloat16_with_the_version_before_is_wrong_where_that_can_be_measured() -> None:
    own = probe(0.2, "torch.bfloat16")
    assert own.judge(logprobs(9, 0.05, BEFORE), "torch.bfloat16").answers_as == PREVIOUS


def test_a_version_that_changes_nothing_measurable_has_no_version_before() -> None:
    assert probe(0.0).judge(BEFORE, "torch.float32").is_right


def test_an_engine_that_uses_the_base_model_is_wrong() -> None:
    own = probe(0.1)
    verdict = own.judge(logprobs(9, 2e-5, own.others[BASE]), "torch.float32")
    assert verdict.answers_as == BASE and "the base model" in str(verdict)


def test_an_engine_that_uses_anything_else_is_wrong() -> None:
    for seed in range(50):
        verdict = probe(3.0).judge(logprobs(100 + seed, 3.0), "torch.float32")
        assert not verdict.is_right and verdict.answers_as is None
    assert not probe(0.1).judge([float("nan")] * 47, "torch.float32").is_right


def test_a_probe_survives_its_checkpoint(tmp_path: Path) -> None:
    own = probe(0.1)
    for metadata, expected in (({"step": 1, "probe": own.to_json()}, own), ({"step": 0}, None)):
        checkpoint = write_checkpoint(tmp_path, LearnerState({}), {"step": metadata["step"]}, metadata)
        assert VersionProbe.of_checkpoint(checkpoint.path) == expected
