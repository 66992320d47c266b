"""Gradient steps over packed forests equal those over the sequences alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from small_models import randomise_adapter
from trees import branching_group, trees

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.losses import LossInputs, kl_sum, policy_loss, shift_right
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.policy import Policy
from tandem.rl.steps import mark_fresh
from tandem.rl.tokens.tokenizing import TokenizedSequence

PPO = LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.3)
LOSSES = {
    "cispo": LossConfig(),
    "ppo": PPO,
    "sequence": replace(PPO, importance_sampling_level="sequence", kimi_k2_tau=0.1),
    "average": LossConfig(importance_sampling_level="average", truncated_importance_sampling=1.5),
    "kl": replace(PPO, kl_coef=0.3, kl_source="current_learner"),
}


RANDOM = settings(deadline=None, max_examples=8, phases=[Phase.generate])  # shrinking takes minutes, and shows little


@pytest.fixture(scope="module", params=["segments", "sdpa"])
def policy(request: pytest.FixtureRequest, qwen3_path: Path) -> Policy:
    """Return a policy whose weights are float64."""
    policy = Policy.load(qwen3_path, "cpu", attention=request.param)
    randomise_adapter(policy)
    policy._decoder.double()
    assert all(parameter.dtype == torch.float64 for parameter in [*policy.parameters.values(), policy._head])
    return policy


def filled(row: PackedSequence, scores: torch.Tensor, recomputed: bool) -> PackedSequence:
    """Return the row with old and reference logprobs near the given ones. The sampling logprobs are off by far."""
    return replace(
        mark_fresh(row, version=1), ref_logprobs=1.1 * scores + 0.1, old_logprobs=0.9 * scores if recomputed else None
    )


def gradient(policy: Policy, rows: Sequence[PackedSequence], loss: LossConfig, recomputed: bool) -> torch.Tensor:
    """Return the gradient of the summed loss of a step."""
    inputs = []
    for row in rows:
        logprobs, _ = policy.logprobs(row, trained_only=True)
        scores = shift_right(logprobs.detach(), float("nan"))
        inputs.append(LossInputs.from_packed(filled(row, scores, recomputed), logprobs))
    kl_mean = sum(kl_sum(each, loss) for each in inputs) / sum(row.num_trained_tokens for row in rows)
    total = sum(policy_loss(each, loss, kl_mean).loss_sum for each in inputs)
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(policy.parameters.values()))])


def alone(sequences: Sequence[TokenizedSequence]) -> list[PackedSequence]:
    return [row for sequence in sequences for row in pack([replace(sequence, prompt_length=0)], sequence.num_tokens)]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@RANDOM
@given(sequences=trees(), length=st.integers(37, 120), min_gain=st.integers(1, 4), recomputed=st.booleans())
def test_the_gradient_is_the_sum_of_the_sequences(
    policy: Policy, loss: LossConfig, sequences: list[TokenizedSequence], length: int, min_gain: int, recomputed: bool
) -> None:
    together = gradient(policy, pack(sequences, length, min_gain), loss, recomputed)
    apart = gradient(policy, alone(sequences), loss, recomputed)
    # The model's norms compute in float32, whatever its dtype. Where gradients cancel, what is left is small.
    assert (together - apart).abs().max() <= 1e-6 * apart.abs().max()


@pytest.fixture(scope="module")
def learner(qwen3_path: Path) -> Learner:
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_gradient_step_is_that_over_the_sequences(learner: Learner, loss: LossConfig) -> None:
    sequences = [s for group in range(2) for s in branching_group(group)]
    forest = pack(sequences, 50, min_gain=1)
    assert len(forest) == 2 and all(row.repeats.indices.numel() for row in forest)
    assert sum(row.num_tokens for row in forest) < 0.7 * sum(s.num_tokens for s in sequences)
    results = []
    for rows in (forest, alone(sequences)):
        scores = learner.score(rows)
        learner.forward_backward([filled(*each, recomputed=True) for each in zip(rows, scores, strict=True)], loss)
        gradient = torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters.values()]).clone()
        results.append((gradient, learner.optim_step(0.0)))
    (together, metrics), (apart, expected) = results
    assert (together - apart).abs().max() <= 1e-5 * apart.abs().max()
    del metrics["data/step_num_sequences"], expected["data/step_num_sequences"]
    assert metrics["logprobs/sampled_current_abs_diff_max"] > 1
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-5)
