"""Base models with recurrent layers: rows hold whole sequences, and no state leaks from one into the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from model_families import LINEAR, MAMBA, MIXTURE, family, save
from small_models import packed_group, randomise_adapter
from transformers import AutoModelForCausalLM
from trees import branching_group, trees

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.attention.masks import forward_inputs, transformers_name
from tandem.rl.models.attention.windows import attention_windows
from tandem.rl.models.faithfulness import check_faithfulness
from tandem.rl.models.layers.recurrent_layers import boundary_inputs, recurrent_layers, separate_sequences
from tandem.rl.packing import PackedSequence, pack, unpack
from tandem.rl.policy import Policy, PolicyError, initial_adapter
from tandem.rl.settings import LoraSettings
from tandem.rl.tokens.tokenizing import TokenizedSequence

DELTA = LINEAR | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "linear_attention", "full_attention"]}
HYBRID = {
    "qwen3_next": (family("qwen3_next", **DELTA, **MIXTURE), ("in_proj_qkvz", "out_proj", "q_proj")),
    "qwen3_5_text": (family("qwen3_5_text", **DELTA), ("in_proj_qkv", "in_proj_z", "out_proj", "q_proj")),
    "qwen3_5": (family("qwen3_5", DELTA), ("in_proj_qkv", "out_proj", "down_proj")),
    "qwen3_5_moe": (family("qwen3_5_moe", DELTA | MIXTURE), ("in_proj_qkv", "out_proj")),
    "a recurrent layer at the end": (
        family("qwen3_5_text", **LINEAR | {"layer_types": ["full_attention", "linear_attention"]}),
        ("in_proj_qkv", "q_proj"),
    ),
    "olmo_hybrid": (family("olmo_hybrid", **LINEAR), ("q_proj", "o_proj")),
    "bamba": (family("bamba", attn_layer_indices=[1], **MAMBA), ("in_proj", "q_proj")),
    "granitemoehybrid": (
        family("granitemoehybrid", layer_types=["mamba", "attention"], shared_intermediate_size=32, **MAMBA, **MIXTURE),
        ("in_proj", "q_proj"),
    ),
}
SEQUENCES = branching_group(seed=3)


def alone(sequences: Sequence[TokenizedSequence]) -> list[PackedSequence]:
    return [row for sequence in sequences for row in pack([sequence], sequence.num_tokens, shares_prefixes=False)]


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(HYBRID["qwen3_5_text"][0], tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("name", HYBRID)
def test_packed_sequences_are_computed_as_alone(name: str, tmp_path: Path) -> None:
    config, targets = HYBRID[name]
    path = save(config, tmp_path)
    policy = Policy.load(path, "cpu", lora=LoraSettings(r=2, target_modules=targets), max_length=128)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    [row] = pack(SEQUENCES, 500, shares_prefixes=False)
    with torch.no_grad():
        packed, _ = policy.logprobs(row)
        for indices in unpack(row):
            ids = row.token_ids[indices]
            own = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None]).squeeze(1)
            torch.testing.assert_close(packed[indices[:-1]], own, rtol=0, atol=1e-4)
    assert policy.prunes_last_layer == (name != "a recurrent layer at the end")

    randomise_adapter(policy)
    learner, loss = Learner(policy), LossConfig()
    gradients = []
    for rows in ([row], alone(SEQUENCES)):
        learner.forward_backward(rows, loss)
        gradients.append({name: p.grad.clone() for name, p in policy.parameters.items()})
        learner._discard()
    scale = max(float(g.abs().max()) for g in gradients[1].values())
    for key, expected in gradients[1].items():
        assert expected.abs().max() > 0, key
        assert (gradients[0][key] - expected).abs().max() <= 1e-5 * scale, key


@pytest.mark.parametrize("attention", ["segments", "sdpa", "eager"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_neither_attention_nor_checkpointing_changes_a_gradient(
    attention: str, checkpointing: bool, qwen: Path
) -> None:
    rows = pack(SEQUENCES, 60, shares_prefixes=False)
    gradients = []
    for options in ({}, {"attention": attention, "gradient_checkpointing": checkpointing}):
        policy = Policy.load(qwen, "cpu", lora=LoraSettings(r=2, target_modules=("in_proj_qkv", "q_proj")), **options)
        randomise_adapter(policy)
        learner = Learner(policy)
        learner.forward_backward(rows, LossConfig())
        gradients.append(learner._optimizer.gradient.clone())
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-5 * gradients[0].abs().max()


@pytest.mark.parametrize("name", HYBRID)
def test_flex_attention_computes_what_sdpa_computes(name: str, tmp_path: Path) -> None:
    """Without a gradient, which it has on CUDA only."""
    path, [row], found = save(HYBRID[name][0], tmp_path), pack(SEQUENCES, 500, shares_prefixes=False), []
    for attention in ("sdpa", "flex_attention"):
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=transformers_name(attention)).eval()
        separate_sequences(decoder := model.get_decoder(), torch.device("cpu"))
        inputs = forward_inputs(row, attention, torch.float32, attention_windows(model.config), shares_prefixes=False)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            found.append(decoder(**inputs, use_cache=False)[0][0, : row.num_tokens])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


def test_scores_of_a_row_are_those_of_its_sequences(qwen: Path) -> None:
    learner = Learner(Policy.load(qwen, "cpu", lora=LoraSettings(r=2, target_modules=("q_proj",))))
    [row] = pack(SEQUENCES, 500, shares_prefixes=False)
    [together], apart = learner.score([row]), learner.score(alone(SEQUENCES))
    torch.testing.assert_close(together, torch.cat(apart), rtol=0, atol=1e-5, equal_nan=True)


def test_a_row_with_shared_prefixes_is_refused(qwen: Path) -> None:
    policy = Policy.load(qwen, "cpu", lora=LoraSettings(r=2, target_modules=("q_proj",)))
    assert not policy.shares_prefixes
    with pytest.raises(PolicyError, match="shares_prefixes=False"):
        policy.logprobs(packed_group(10, [5, 6]))


@pytest.mark.parametrize("name", ["qwen3_next", "qwen3_5", "bamba"])
def test_the_check_finds_a_state_that_leaks(name: str, tmp_path: Path) -> None:
    """Here no layer follows the boundaries."""
    model = AutoModelForCausalLM.from_pretrained(save(HYBRID[name][0], tmp_path), attn_implementation="sdpa")
    assert recurrent_layers(model.get_decoder())
    with pytest.raises(PolicyError, match="linear_attention"):
        check_faithfulness(model, "sdpa", max_length=64)


def test_version_0_is_made_without_weights(qwen: Path) -> None:
    lora = LoraSettings(r=2, target_modules=("in_proj_qkv", "q_proj"))
    made, loaded = initial_adapter(qwen, lora), Policy.load(qwen, "cpu", lora=lora).adapter_state()
    assert made.keys() == loaded.keys() and all(torch.equal(made[name], loaded[name]) for name in made)


# Rows


@given(sequences=trees())
def test_without_sharing_every_sequence_is_one_segment(sequences: list[TokenizedSequence]) -> None:
    longest = max(sequence.num_tokens for sequence in sequences)
    rows = pack(sequences, 2 * longest, shares_prefixes=False)
    assert all(row.num_tokens <= 2 * longest and torch.equal(row.segment_ids, row.parent_ids) for row in rows)
    found = [(row, row.segment_ids == segment) for row in rows for segment in row.segment_ids.unique()]
    for (row, own), sequence in zip(found, sequences, strict=True):
        assert torch.equal(row.token_ids[own], sequence.token_ids)
        assert row.positions[own].tolist() == list(range(sequence.num_tokens))
        assert torch.equal(row.loss_mask[own], sequence.loss_mask)
    assert sum(row.num_trained_tokens for row in rows) == sum(sequence.num_trained_tokens for sequence in sequences)


def test_boundaries_of_a_row() -> None:
    lengths = [2, 1, 3]
    row = packed_group(0, lengths)
    inputs = boundary_inputs(row, padding=2)
    assert inputs["cu_seq_lens_q"].tolist() == [0, 2, 3, 6, 8]
    assert inputs["seq_idx"].tolist() == [[0, 0, 1, 2, 2, 2, 3, 3]]
    assert boundary_inputs(row)["cu_seq_lens_q"].tolist() == [0, 2, 3, 6]


def test_rows_without_sharing_do_not_depend_on_the_prompt_of_a_group() -> None:
    shorter = [replace(sequence, prompt_length=2) for sequence in SEQUENCES]
    for own, other in zip(
        pack(SEQUENCES, 60, shares_prefixes=False), pack(shorter, 60, shares_prefixes=False), strict=True
    ):
        assert torch.equal(own.token_ids, other.token_ids)
