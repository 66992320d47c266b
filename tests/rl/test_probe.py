"""The probe: its tokens, its comparison, and its score by a policy."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from small_models import VOCABULARY, randomise_adapter, small_config
from transformers import Qwen3ForCausalLM

from tandem.rl.policy import Policy
from tandem.rl.probe import (
    FLOAT32,
    PROBE_TOKENS,
    QUANTIZED,
    QUANTIZED_WEIGHTS,
    Tolerance,
    compare,
    is_finite,
    probe_token_ids,
    tolerance_for,
)


def test_the_tokens_are_ordinary_and_always_the_same() -> None:
    config = small_config(eos_token_id=[60, 61], pad_token_id=70)
    tokens = probe_token_ids(config)
    assert tokens == probe_token_ids(config)
    assert len(tokens) == PROBE_TOKENS and len(set(tokens)) > 15
    assert all(VOCABULARY // 8 <= token < VOCABULARY for token in tokens)
    assert not {60, 61, 70} & set(tokens)


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 8, 100_000])
@pytest.mark.parametrize("num_tokens", [2, 3, 16])
def test_there_are_tokens_for_any_vocabulary(vocab_size: int, num_tokens: int) -> None:
    tokens = probe_token_ids(small_config(vocab_size=vocab_size), num_tokens)
    assert len(tokens) == num_tokens and all(0 <= token < vocab_size for token in tokens)


def test_a_difference_by_hand() -> None:
    difference = compare([-1.0, -2.0, -3.0], [-1.0, -2.5, -3.0], Tolerance(max=0.6, mean=0.2))
    assert (difference.max, difference.mean) == pytest.approx((0.5, 0.5 / 3))
    assert difference.is_agreement
    assert not compare([-1.0, -2.0, -3.0], [-1.0, -2.5, -3.0], Tolerance(max=0.4, mean=0.2)).is_agreement
    assert not compare([-1.0, -2.0], [-1.5, -2.5], Tolerance(max=0.6, mean=0.2)).is_agreement


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_never_agree(value: float) -> None:
    for left, right in (([-1.0, value], [-1.0, -1.0]), ([-1.0, -1.0], [-1.0, value]), ([value], [value])):
        assert not compare(left, right, Tolerance(max=1e9, mean=1e9)).is_agreement
    assert not is_finite([-1.0, value])
    assert is_finite([-1.0, -1e30])


def test_a_policy_scores_the_probe_as_its_model_does(qwen3_path: Path) -> None:
    policy = Policy.load(qwen3_path, "cpu")
    tokens = torch.tensor(policy.probe_token_ids)
    with torch.no_grad():
        log_softmax = Qwen3ForCausalLM.from_pretrained(qwen3_path)(tokens[None]).logits[0].log_softmax(-1)
    expected = log_softmax[:-1].gather(1, tokens[1:, None]).squeeze(1).tolist()
    assert policy.probe() == pytest.approx(expected, abs=1e-5)
    randomise_adapter(policy)
    assert compare(policy.probe(), expected, FLOAT32).max > 0.01


@pytest.mark.parametrize("weight", [math.nan, 1e30])
def test_a_destroyed_policy_is_not_finite_on_the_probe(qwen3_path: Path, weight: float) -> None:
    policy = Policy.load(qwen3_path, "cpu")
    assert is_finite(policy.probe())
    policy.load_adapter_state({name: torch.full_like(t, weight) for name, t in policy.adapter_state().items()})
    assert not is_finite(policy.probe())


def test_the_least_precise_dtype_decides() -> None:
    assert tolerance_for(torch.float32, "float32") == FLOAT32
    assert tolerance_for("bfloat16", QUANTIZED_WEIGHTS) == QUANTIZED
    assert tolerance_for(torch.float32, "bfloat16") == tolerance_for(torch.bfloat16) != FLOAT32
