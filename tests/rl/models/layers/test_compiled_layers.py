"""Compiled decoder layers: the same logprobs and gradients, and few graphs for rows of every length."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from small_models import packed_group, randomise_adapter, save_model
from torch import Tensor
from torch._dynamo.utils import counters

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.layers import compiled_layers
from tandem.rl.models.layers.any_length import compile_for_any_length
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy


def results(policy: Policy, row: PackedSequence) -> list[Tensor]:
    """Return logprobs with and without gradient, and the gradient."""
    with torch.no_grad():
        scored, _ = policy.logprobs(row, trained_only=True)
    logprobs, _ = policy.logprobs(row, trained_only=True)
    gradient = torch.autograd.grad(logprobs.nansum(), list(policy.parameters.values()))
    return [scored, logprobs.detach(), torch.cat([part.flatten() for part in gradient])]


def test_compiled_layers_compute_the_same_with_few_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradient checkpointing and a bfloat16 base, as on a GPU. The graphs run here without Inductor's kernels."""
    without_kernels = partial(compile_for_any_length, backend="aot_eager")
    monkeypatch.setattr(compiled_layers, "compile_for_any_length", without_kernels)
    path = save_model(tmp_path)
    before, breaks = counters["stats"]["unique_graphs"], counters["graph_break"].copy()
    compiled, plain = (
        Policy.load(path, "cpu", "bfloat16", "sdpa", gradient_checkpointing=True, compile=compile)
        for compile in (True, False)
    )
    assert (compiled.compiles, plain.compiles) == (True, False)
    Learner(compiled).warm_up(64)  # tokens, as many as the model has features
    num_graphs = counters["stats"]["unique_graphs"] - before
    assert num_graphs == 3  # without gradient; with gradient, and that of the first layer, whose input has none
    for policy in (compiled, plain):
        randomise_adapter(policy)
    for lengths in ([60, 45, 7], [2, 3, 4]):
        row = packed_group(23, lengths)
        for found, expected in zip(results(compiled, row), results(plain, row), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert counters["stats"]["unique_graphs"] - before == num_graphs
    assert counters["graph_break"] == breaks


def test_a_warm_up_leaves_nothing_behind(tmp_path: Path) -> None:
    learners = [Learner(Policy.load(save_model(tmp_path), "cpu")) for _ in range(2)]
    learners[0].policy.compiles = True
    learners[0].warm_up(40)
    row = packed_group(11, [9, 14])
    first, second = (learner.step([row], LossConfig(), 1e-3) for learner in learners)
    assert first == second
    for name, tensor in learners[0].state().adapter.items():
        assert torch.equal(tensor, learners[1].state().adapter[name])
