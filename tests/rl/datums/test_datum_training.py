"""Gradients of datums: those of a plain model in float64, however datums are packed, ordered and spread over calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from plain_losses import OPTIONS, PlainModel, call_datums
from small_models import VOCABULARY, randomise_adapter
from torch import Tensor

from tandem.rl.datums.datum import Call, Datum, check_call
from tandem.rl.datums.rows import pack_datums
from tandem.rl.datums.training import DatumOutputs
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy

EXACT = 1e-5
"""Relative, in float32 against float64."""
PACKED = 400


@pytest.fixture(scope="module")
def learner(qwen3_path: Path) -> Learner:
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


@pytest.fixture(scope="module")
def plain(qwen3_path: Path, learner: Learner) -> PlainModel:
    return PlainModel(qwen3_path, learner.policy)


def gradient(learner: Learner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters.values()]).clone()


def accumulate(
    learner: Learner,
    datums: Sequence[Datum],
    loss: str,
    options: Mapping[str, float] | None = None,
    packed_length: int = PACKED,
    forward_only: bool = False,
) -> DatumOutputs:
    options = OPTIONS[loss] if options is None else options
    check_call(Call(datums, loss, options), VOCABULARY, 512)
    rows = pack_datums(datums, packed_length, learner.policy.shares_prefixes)
    return learner.accumulate(rows, loss, options, forward_only, chunk_size=7)


def gradient_of(learner: Learner, *calls: tuple[Sequence[Datum], str], packed_length: int = PACKED) -> Tensor:
    """Return the sum over calls, and discard it."""
    for datums, loss in calls:
        accumulate(learner, datums, loss, packed_length=packed_length)
    found = gradient(learner)
    learner.discard_gradient()
    assert not gradient(learner).any()
    return found


def assert_same(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    error = float((found - expected).norm() / expected.norm())
    assert error < tolerance, error


@pytest.mark.parametrize("loss", OPTIONS)
def test_gradients_are_those_of_a_plain_model_in_float64(learner: Learner, plain: PlainModel, loss: str) -> None:
    datums = call_datums(loss)
    expected_loss, expected = plain.gradient(datums, loss, OPTIONS[loss])
    outputs = accumulate(learner, datums, loss)
    found = gradient(learner)
    learner.discard_gradient()
    assert_same(found, expected)
    assert outputs.sums["loss"] == pytest.approx(expected_loss, rel=EXACT)
    assert list(outputs.logprobs) == sorted(outputs.logprobs) or set(outputs.logprobs) == set(range(len(datums)))
    for index, datum in enumerate(datums):
        torch.testing.assert_close(outputs.logprobs[index].double(), plain.logprobs(datum), rtol=0, atol=EXACT)
