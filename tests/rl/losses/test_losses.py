"""Losses compared with recorded numbers and with numbers worked by hand, and their robustness to bad input."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from paths import DATA

from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.losses import (
    LossInputs,
    kl_sum,
    mean_over_tokens,
    policy_loss,
    probability_correlation,
    probability_moments,
    shift_left,
    shift_right,
)
from tandem.rl.losses.importance import completion_mean, importance_ratio

NAN = float("nan")
VECTORS = json.loads((DATA / "loss_vectors.json").read_text())["cases"]
FILLS_MISSING_SAMPLING = "tis_missing_original_filled_with_new"


# Recorded numbers


def rows(values: list[list[float | None]], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([[NAN if value is None else value for value in row] for row in values], dtype=dtype)


def recorded_inputs(case: dict[str, Any], dtype: torch.dtype) -> LossInputs:
    """Return the [B, S] arrays of a case, each row shifted by one, as flat tensors."""
    arrays = case["inputs"]

    def shifted(name: str, pad: float | bool, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.cat([shift_left(row, pad) for row in rows(arrays[name], dtype)])

    recomputed = "original_logprobs" in arrays
    policy = rows(arrays["new_logprobs"], dtype).flatten().requires_grad_()
    sampling = shifted("original_logprobs" if recomputed else "logprobs", NAN)
    if FILLS_MISSING_SAMPLING in case["tags"]:
        # The recording replaces unknown sampling logprobs by the policy's. Ours differ; a test below covers them.
        sampling = torch.where(sampling.isnan(), policy.detach(), sampling)
    return LossInputs(
        policy_logprobs=policy,
        sampling_logprobs=sampling,
        advantages=shifted("advantages", 0.0),
        weights=shifted("weights", 0.0),
        loss_mask=shifted("assistant_mask", False, torch.bool),
        completion_ids=shifted("group_ids", 0, torch.int64),
        old_logprobs=shifted("logprobs", NAN) if recomputed else None,
        ref_logprobs=None if arrays["ref_logprobs"] is None else rows(arrays["ref_logprobs"], dtype).flatten(),
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-6)])
@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_recorded_losses_and_gradients(case: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    expected = case["expected"]
    inputs = recorded_inputs(case, dtype)
    terms = policy_loss(inputs, TrainingConfig(**case["config"]).loss())
    (gradient,) = torch.autograd.grad(terms.loss_sum, inputs.policy_logprobs)

    def assert_close(actual: torch.Tensor | float, wanted: Any) -> None:
        actual = torch.as_tensor(actual, dtype=torch.float64)
        wanted = torch.tensor(wanted, dtype=torch.float64).flatten()
        assert ((actual.flatten() - wanted).abs() / wanted.abs().clamp_min(1)).max() < tolerance

    assert_close(terms.loss_sum.detach(), expected["policy_loss_sum"])
    assert_close(mean_over_tokens(terms.loss_sum.detach(), terms.num_tokens), expected["policy_loss_mean"])
    assert_close(gradient, expected["grad_sum"])
    assert_close(mean_over_tokens(gradient, terms.num_tokens), expected["grad_mean"])
    assert (terms.kl_sum is None) == (expected["kl_policy_ref"] is None)
    if terms.kl_sum is not None:
        assert_close(mean_over_tokens(terms.kl_sum, terms.num_tokens), expected["kl_policy_ref"])
    correlation = probability_correlation(probability_moments(inputs))
    assert (correlation is None) == (expected["probs_corr"] is None)
    if correlation is not None:
        assert_close(correlation, expected["probs_corr"])
    if case["inputs"]["entropies"] is not None:
        entropy = rows(case["inputs"]["entropies"], dtype).flatten()
        weighted = (entropy * inputs.weights)[inputs.loss_mask].sum()
        assert_close(mean_over_tokens(weighted, terms.num_tokens), expected["entropy_mean_unshifted"])


def test_the_recorded_cases_cover_every_option() -> None:
    used = {option for case in VECTORS for option, value in case["config"].items() if value is not None}
    assert used >= {
        "loss_fn", "ppo", "epsilon", "epsilon_high", "importance_sampling_level", "mask_prob_ratio", "kimi_k2_tau",
        "max_negative_advantage_importance_sampling_weight", "truncated_importance_sampling", "kl_penalty_coef",
    }  # fmt: skip
    assert sum(FILLS_MISSING_SAMPLING in case["tags"] for case in VECTORS) == 1


# Numbers worked by hand. Two completions: tokens 0 and 1 with A = 1, tokens 2 and 3 with A = -2. The policy has
# probability 1/4 for each. The ratios to the old policy are 2, 1/2, 4 and 1.

POLICY = math.log(0.25)


def hand_inputs(**changes: Any) -> LossInputs:
    ratios = torch.tensor([2.0, 0.5, 4.0, 1.0], dtype=torch.float64)
    inputs = LossInputs(
        policy_logprobs=torch.full((4,), POLICY, dtype=torch.float64, requires_grad=True),
        sampling_logprobs=torch.log(0.25 / ratios),
        advantages=torch.tensor([1.0, 1.0, -2.0, -2.0], dtype=torch.float64),
        weights=torch.tensor([1.0, 1.0, 0.5, 0.5], dtype=torch.float64),
        loss_mask=torch.ones(4, dtype=torch.bool),
        completion_ids=torch.tensor([10, 10, 0, 0]),
    )
    return replace(inputs, **changes)


def gradient_of(inputs: LossInputs, config: LossConfig, kl_mean: torch.Tensor | None = None) -> list[float]:
    loss = policy_loss(inputs, config, kl_mean).loss_sum
    return torch.autograd.grad(loss, inputs.policy_logprobs)[0].tolist()


PPO = LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.2)


def test_ppo_by_hand() -> None:
    """r A: 2, .5, -8, -2; clipped: 1.2, .8, -2.4, -2; the smaller: 1.2, .5, -8, -2; weights 1, 1, .5, .5."""
    terms = policy_loss(hand_inputs(), PPO)
    assert terms.loss_sum.item() == pytest.approx(-(1.2 + 0.5 - 4 - 1))
    assert terms.num_tokens == 4
    # dr/dlogp = r: the clipped token 0 has no gradient, token 2 (A < 0, r above the range) keeps its own.
    assert gradient_of(hand_inputs(), PPO) == pytest.approx([0, -0.5, 4, 1])
    assert terms.ratio_sum.item() == pytest.approx(7.5)
    assert terms.num_clipped.item() == 3


def test_ppo_epsilon_high_moves_only_the_upper_bound() -> None:
    config = replace(PPO, epsilon_high=3.0)
    assert gradient_of(hand_inputs(), config) == pytest.approx([-2, -0.5, 4, 1])


def test_cispo_by_hand() -> None:
    """Clipped to [0, 3]: 2, .5, 3, 1. L = -c A log p w: every token has the gradient -c A w."""
    config = LossConfig(epsilon=1.0, epsilon_high=2.0)
    assert gradient_of(hand_inputs(), config) == pytest.approx([-2, -0.5, 3, 1])
    loss = policy_loss(hand_inputs(), config).loss_sum
    assert loss.item() == pytest.approx((-2 - 0.5 + 3 + 1) * POLICY)


def test_importance_levels_by_hand() -> None:
    """Completion 10: d = ln 2, -ln 2, mean 0, q = 1. Completion 0: d = ln 4, 0, mean ln 2, q = 2."""
    inputs = hand_inputs()
    log_ratio = (inputs.policy_logprobs - inputs.sampling_logprobs).detach()

    def ratio(level: str) -> list[float]:
        return importance_ratio(log_ratio, inputs.completion_ids, level).tolist()

    assert ratio("token") == pytest.approx([2, 0.5, 4, 1])
    assert ratio("sequence") == pytest.approx([1, 1, 2, 2])
    assert ratio("average") == pytest.approx([1.5, 0.75, 3, 1.5])
    assert ratio("geometric_average") == pytest.approx([2**0.5, 0.5**0.5, 8**0.5, 2**0.5])


def test_sequence_level_gradient_is_shared_by_the_completion() -> None:
    """L = -q A w summed over a completion of two tokens; dq/dlogp = q / 2 at each: -(1 + 1)/2 and (2 2 .5) 2 / 2."""
    config = LossConfig(loss_fn="ppo", epsilon=0.9, epsilon_high=9.0, importance_sampling_level="sequence")
    assert gradient_of(hand_inputs(), config) == pytest.approx([-1, -1, 2, 2])


def test_completion_mean_keeps_large_ids_apart() -> None:
    ids = torch.tensor([2**53, 2**53 + 1, 2**53, 0])
    means = completion_mean(torch.tensor([1.0, 5.0, 3.0, 7.0], dtype=torch.float64), ids)
    assert means.tolist() == pytest.approx([2, 5, 2, 7])


def test_cap_holds_for_positive_advantages_too() -> None:
    config = LossConfig(max_negative_advantage_importance_sampling_weight=1.5)
    assert gradient_of(hand_inputs(), config) == pytest.approx([-1.5, -0.5, 1.5, 1])


def test_mask_silences_ratios_outside_the_range_after_the_cap() -> None:
    config = LossConfig(epsilon=1.0, epsilon_high=0.8, mask_prob_ratio=True)
    assert gradient_of(hand_inputs(), config) == pytest.approx([0, -0.5, 0, 1])
    capped = replace(config, max_negative_advantage_importance_sampling_weight=1.7)
    assert gradient_of(hand_inputs(), capped) == pytest.approx([-1.7, -0.5, 1.7, 1])


def test_cispo_clip_raises_a_masked_ratio_to_its_lower_bound() -> None:
    config = LossConfig(epsilon=0.4, epsilon_high=0.8, mask_prob_ratio=True)
    assert gradient_of(hand_inputs(), config) == pytest.approx([-0.6, -0.6, 0.6, 1])


def test_tau_pulls_towards_the_old_policy_at_token_level() -> None:
    """A - tau d with tau = 1: 1 - ln 2, 1 + ln 2, -2 - ln 4, -2; the sequence-level ratios are 1, 1, 2, 2."""
    config = LossConfig(kimi_k2_tau=1.0, importance_sampling_level="sequence")
    ln2 = math.log(2)
    assert gradient_of(hand_inputs(), config) == pytest.approx([ln2 - 1, -1 - ln2, 2 + 2 * ln2, 2])


def test_truncation_without_recomputed_logprobs_uses_the_policy_ratio() -> None:
    config = LossConfig(truncated_importance_sampling=1.5)
    assert gradient_of(hand_inputs(), config) == pytest.approx([-2 * 1.5, -0.5 * 0.5, 4 * 1.5, 1])


def test_truncation_corrects_from_sampling_to_recomputed_logprobs() -> None:
    """old = policy, so r = 1; v = old / sampling = 2, .5, 4, 1, at most 1.5; a missing sampling logprob gives v = 1."""
    config = LossConfig(truncated_importance_sampling=1.5)
    old = torch.full((4,), POLICY, dtype=torch.float64)
    inputs = hand_inputs(old_logprobs=old)
    assert gradient_of(inputs, config) == pytest.approx([-1.5, -0.5, 1.5, 1])

    sampling = inputs.sampling_logprobs.clone()
    sampling[0], sampling[2] = NAN, -9999.0
    different_old = old.clone()
    different_old[0] = POLICY - math.log(2)
    missing = replace(inputs, sampling_logprobs=sampling, old_logprobs=different_old)
    assert gradient_of(missing, config) == pytest.approx([-2, -0.5, 1, 1])


def test_unknown_old_logprobs_give_ratio_one() -> None:
    sampling = hand_inputs().sampling_logprobs.clone()
    sampling[0], sampling[2] = NAN, -9999.0
    inputs = hand_inputs(sampling_logprobs=sampling)
    assert gradient_of(inputs, LossConfig()) == pytest.approx([-1, -0.5, 1, 1])
    assert gradient_of(inputs, PPO) == pytest.approx([-1, -0.5, 1, 1])


def test_recomputed_logprobs_replace_the_sampling_ones() -> None:
    old = torch.full((4,), POLICY - math.log(3), dtype=torch.float64)
    assert gradient_of(hand_inputs(old_logprobs=old), LossConfig()) == pytest.approx([-3, -3, 3, 3])


def test_kl_by_hand() -> None:
    """k = 0, 1, 2, 5 from the policy; kbar = 2; c = .1: A = 1.2, 1.1, -2, -2.3 at ratios of 1."""
    config = LossConfig(kl_coef=0.1, kl_source="current_learner")
    drift = torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64)
    unknown = torch.full((4,), NAN, dtype=torch.float64)
    inputs = hand_inputs(sampling_logprobs=unknown, ref_logprobs=POLICY - drift)
    assert gradient_of(inputs, config) == pytest.approx([-1.2, -1.1, 1.0, 1.15], rel=1e-6)
    assert policy_loss(inputs, config).kl_sum.item() == pytest.approx(8)
    assert kl_sum(inputs, config).item() == pytest.approx(8)
    # A mean over the whole step, of which this is a part: A = 1.3, 1.2, -1.9, -2.2.
    step_mean = torch.tensor(3.0, dtype=torch.float64)
    assert gradient_of(inputs, config, step_mean) == pytest.approx([-1.3, -1.2, 0.95, 1.1])


def test_kl_from_the_sampling_policy() -> None:
    """k = old - ref with ref = policy: -ln 2, ln 2, -ln 4, 0, whose mean is -ln 2 / 2."""
    config = LossConfig(kl_coef=1.0, kl_source="sample")
    inputs = hand_inputs(ref_logprobs=torch.full((4,), POLICY, dtype=torch.float64))
    ln2 = math.log(2)
    advantages = [1 + 0.5 * ln2, 1 - 1.5 * ln2, -2 + 1.5 * ln2, -2 - 0.5 * ln2]
    factors = [2, 0.5, 4 * 0.5, 1 * 0.5]
    expected = [-a * factor for a, factor in zip(advantages, factors, strict=True)]
    assert gradient_of(inputs, config) == pytest.approx(expected, abs=1e-6)


def test_no_kl_without_a_coefficient() -> None:
    inputs = hand_inputs(ref_logprobs=torch.zeros(4, dtype=torch.float64))
    assert policy_loss(inputs, LossConfig(kl_coef=0.0)).kl_sum is None


# Invariances and robustness

EVERYTHING = LossConfig(
    importance_sampling_level="average",
    mask_prob_ratio=True,
    max_negative_advantage_importance_sampling_weight=3.5,
    kimi_k2_tau=0.3,
    truncated_importance_sampling=1.2,
    kl_coef=0.2,
    kl_source="current_learner",
)


@pytest.mark.parametrize("garbage", [NAN, float("-inf"), float("inf")])
@pytest.mark.parametrize("loss_fn", ["cispo", "ppo"])
def test_untrained_positions_reach_neither_value_nor_gradient(garbage: float, loss_fn: str) -> None:
    config = replace(EVERYTHING, loss_fn=loss_fn)
    ref = torch.full((4,), POLICY - 0.1, dtype=torch.float64)
    old = torch.full((4,), POLICY - 0.2, dtype=torch.float64)
    clean = hand_inputs(ref_logprobs=ref, old_logprobs=old)

    def with_garbage(values: torch.Tensor) -> torch.Tensor:
        extended = torch.cat([values.detach(), torch.full((1,), garbage, dtype=torch.float64)])
        return extended.requires_grad_(values.requires_grad)

    dirty = LossInputs(
        policy_logprobs=with_garbage(clean.policy_logprobs),
        sampling_logprobs=with_garbage(clean.sampling_logprobs),
        advantages=with_garbage(clean.advantages),
        weights=with_garbage(clean.weights),
        loss_mask=torch.tensor([True, True, True, True, False]),
        completion_ids=torch.tensor([10, 10, 0, 0, 0]),
        old_logprobs=with_garbage(old),
        ref_logprobs=with_garbage(ref),
    )
    assert policy_loss(dirty, config).loss_sum.item() == policy_loss(clean, config).loss_sum.item()
    assert gradient_of(dirty, config) == [*gradient_of(clean, config), 0.0]
    assert kl_sum(dirty, config).item() == kl_sum(clean, config).item()


def test_nothing_trained_is_zero_with_zero_gradient() -> None:
    inputs = hand_inputs(loss_mask=torch.zeros(4, dtype=torch.bool))
    config = replace(EVERYTHING, kl_coef=0.0)
    assert policy_loss(inputs, config).num_tokens == 0
    assert gradient_of(inputs, config) == [0.0] * 4


def test_sums_of_parts_are_the_sum_of_the_whole() -> None:
    inputs = hand_inputs(ref_logprobs=torch.full((4,), POLICY - 0.1, dtype=torch.float64))
    kl_mean = torch.tensor(0.1, dtype=torch.float64)
    whole = policy_loss(inputs, EVERYTHING, kl_mean)
    halves = [
        policy_loss(replace(inputs, loss_mask=inputs.completion_ids == completion), EVERYTHING, kl_mean)
        for completion in (10, 0)
    ]
    assert sum(half.loss_sum.item() for half in halves) == pytest.approx(whole.loss_sum.item())
    assert sum(half.num_tokens for half in halves) == whole.num_tokens
    assert sum(half.kl_sum.item() for half in halves) == pytest.approx(whole.kl_sum.item())


def test_correlation_of_probabilities() -> None:
    """Old probabilities 1/8, 1/2, 1/16, 1/4 against 0.2, 0.4, 0.1, 0.3, with one unknown on either side."""
    old = [1 / 8, 1 / 2, 1 / 16, 1 / 4]
    new = [0.2, 0.4, 0.1, 0.3]
    expected = torch.corrcoef(torch.tensor([old, new], dtype=torch.float64))[0, 1].item()
    inputs = LossInputs(
        policy_logprobs=torch.tensor([*new, 0.5, NAN], dtype=torch.float64).log(),
        sampling_logprobs=torch.tensor([*old, NAN, 0.5], dtype=torch.float64).log(),
        advantages=torch.zeros(6),
        weights=torch.zeros(6),
        loss_mask=torch.zeros(6, dtype=torch.bool),
        completion_ids=torch.zeros(6, dtype=torch.int64),
    )
    assert probability_correlation(probability_moments(inputs)) == pytest.approx(expected)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_correlation_is_undefined_without_spread(known: int) -> None:
    sampling = torch.full((4,), NAN)
    sampling[:known] = -1.0
    inputs = replace(hand_inputs(), sampling_logprobs=sampling)
    assert probability_correlation(probability_moments(inputs)) is None


def test_shifts() -> None:
    tokens = torch.tensor([1, 2, 3])
    assert shift_left(tokens, 0).tolist() == [2, 3, 0]
    assert shift_left(torch.tensor([True, False, True]), False).tolist() == [False, True, False]
    assert shift_right(torch.tensor([5.0, 6.0, 7.0]), 0.0).tolist() == [0, 5, 6]
