"""Base models of many families: each is trained as it computes by itself, or rejected by name.

The tiny random models have windows of 16 tokens, so that short sequences show them.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers
from model_families import (
    FULL,
    LINEAR,
    MAMBA,
    SLIDING,
    WINDOW,
    WINDOWED,
    adapted,
    family,
    save,
)
from small_models import packed_group, randomise_adapter, save_model, small_config, unpacked
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)

from tandem.rl.models import faithfulness
from tandem.rl.models.attention.masks import Attention
from tandem.rl.models.base_config import attention_kinds, longest_sequence, remove_randomness
from tandem.rl.models.base_weights import takes_attention_functions
from tandem.rl.models.faithfulness import check_faithfulness
from tandem.rl.models.reference import caps_attention
from tandem.rl.packing import PackedSequence, one_segment, unpack
from tandem.rl.policy import Policy, PolicyError, initial_adapter
from tandem.rl.settings import LoraSettings

ATTENTION = LoraSettings(r=2, target_modules=("q_proj", "v_proj"))


def released(path: Path, attention: str = "eager") -> PreTrainedModel:
    """Return the model as its authors' own code computes it."""
    (architecture,) = AutoConfig.from_pretrained(path).architectures
    return getattr(transformers, architecture).from_pretrained(path, attn_implementation=attention).eval()


TRAINED = {f"{name}, full": config for name, config in FULL.items()} | WINDOWED


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_is_trained_as_it_computes_alone(name: str, tmp_path: Path) -> None:
    path = save(TRAINED[name], tmp_path)
    policy = Policy.load(path, "cpu", lora=adapted(TRAINED[name]), max_length=256)
    packed = packed_group(40, [30, 24, 37])
    model = released(path)
    with torch.no_grad():
        together, _ = policy.logprobs(packed)
        trained, _ = policy.logprobs(packed, trained_only=True)
        alone = [model(row.token_ids[None]).logits[0].log_softmax(-1) for row in unpacked(packed)]
    start = 40
    for row, log_softmax in zip(unpacked(packed), alone, strict=True):
        own = row.token_ids.numel() - 40
        expected = log_softmax[40:-1].gather(1, row.token_ids[41:, None]).squeeze(1)
        torch.testing.assert_close(together[start : start + own - 1], expected, rtol=0, atol=1e-4)
        start += own
    known = ~trained.isnan()
    torch.testing.assert_close(trained[known], together[known], rtol=0, atol=1e-5)
    # With a cap on attention, a model's own code computes it, and the whole of it.
    by_segments = takes_attention_functions(model) and not caps_attention(model.config)
    # A last layer that takes its keys from another one is computed whole.
    by_segments &= not name.endswith("with shared keys")
    assert policy.prunes_last_layer == by_segments


def forest(*segments: tuple[int, int, int]) -> PackedSequence:
    """Return a row of segments (tokens, parent, position of the first) that is only scored."""
    lengths = torch.tensor([length for length, _, _ in segments])
    token_ids = torch.randint(0, 199, (int(lengths.sum()),), generator=torch.Generator().manual_seed(3))
    return replace(
        one_segment(token_ids),
        positions=torch.cat([torch.arange(first, first + length) for length, _, first in segments]),
        segment_ids=torch.arange(len(segments)).repeat_interleave(lengths),
        parent_ids=torch.tensor([parent for _, parent, _ in segments]).repeat_interleave(lengths),
    )


BRANCHES = forest((70, 0, 0), (40, 0, 45), (20, 1, 70), (3, 0, 45), (45, 0, 9), (37, 5, 0), (30, 5, 20))


@pytest.mark.parametrize(
    ("name", "attention"),
    [("gemma3_text", "auto"), ("gemma3_text", "sdpa"), ("gpt_oss", "auto"), ("mistral", "auto"), ("gemma2", "auto")],
)
def test_gradients_through_windows_are_those_of_the_sequences_alone(
    name: str, attention: Attention | Literal["auto"], tmp_path: Path
) -> None:
    """Branches leave their trunk in the middle, more than a window before its end."""
    policy = Policy.load(save(WINDOWED[name], tmp_path), "cpu", attention=attention, lora=ATTENTION, max_length=256)
    randomise_adapter(policy)
    weights = torch.randn(BRANCHES.num_tokens, generator=torch.Generator().manual_seed(1))

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(policy.parameters.values())))

    together, _ = policy.logprobs(BRANCHES)
    known = ~together.isnan()
    packed = gradients((together[known] * weights[known]).sum())
    alone = [torch.zeros_like(gradient) for gradient in packed]
    for segment, indices in enumerate(unpack(BRANCHES)):
        own = indices[BRANCHES.segment_ids[indices] == segment][:-1]
        logprobs = policy.logprobs(one_segment(BRANCHES.token_ids[indices]))[0][-len(own) - 1 : -1]
        torch.testing.assert_close(together[own], logprobs, rtol=0, atol=1e-4)
        alone = [sum_ + own_ for sum_, own_ in zip(alone, gradients((logprobs * weights[own]).sum()), strict=True)]
    for found, expected in zip(packed, alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


# Models whose configuration says that they are different

NAMED = {
    "llama4": (CONFIG_MAPPING["llama4"](), "chunked_attention"),
    "llama4_text": (CONFIG_MAPPING["llama4_text"](), "chunked_attention"),
    "lfm2": (family("lfm2", layer_types=["conv", "full_attention"]), "conv"),
    "jamba": (CONFIG_MAPPING["jamba"](), "linear_attention"),
    "falcon_h1": (CONFIG_MAPPING["falcon_h1"](), "hybrid"),
    "nemotron_h": (CONFIG_MAPPING["nemotron_h"](), "linear_attention"),
    "falcon_mamba": (CONFIG_MAPPING["falcon_mamba"](), "linear_attention"),
    "gpt_neo": (CONFIG_MAPPING["gpt_neo"](), "local"),
    "t5": (CONFIG_MAPPING["t5"](), "encoder"),
    "bart": (CONFIG_MAPPING["bart"](), "encoder"),
    "whisper": (CONFIG_MAPPING["whisper"](), "encoder"),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_model_that_names_other_attention_is_refused_before_its_weights_are_read(name: str, tmp_path: Path) -> None:
    config, reason = NAMED[name]
    config.save_pretrained(tmp_path)
    for load in (lambda: Policy.load(tmp_path, "cpu"), lambda: initial_adapter(tmp_path, LoraSettings())):
        with pytest.raises(PolicyError) as refusal:
            load()
        assert config.model_type in str(refusal.value) and reason in str(refusal.value)


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 4.0}, {"rope_type": "longrope"}])
def test_positions_scaled_by_length_are_refused_beyond_the_original_length(rope: dict, tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
    config = family("llama", rope_parameters={"rope_theta": 1e4, **factors, **rope})
    save(config, tmp_path)
    with pytest.raises(PolicyError, match="max_model_len to at most 64"):
        Policy.load(tmp_path, "cpu")
    Policy.load(tmp_path, "cpu", max_length=64)


@pytest.mark.parametrize("model_type", ["clip", "vit"])
def test_a_model_that_is_no_causal_language_model_is_refused(model_type: str, tmp_path: Path) -> None:
    CONFIG_MAPPING[model_type]().save_pretrained(tmp_path)
    for load in (lambda: Policy.load(tmp_path, "cpu"), lambda: initial_adapter(tmp_path, LoraSettings())):
        with pytest.raises(PolicyError):
            load()


@pytest.mark.parametrize("content", ['{"model_type": "of-tomorrow"}', "{}"])
def test_a_family_that_is_unknown_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(PolicyError, match=str(tmp_path)):
        Policy.load(tmp_path, "cpu")


# Models whose behaviour alone shows it: here the configuration isn't asked

DIFFERENT: dict[str, tuple[PreTrainedConfig, Attention]] = {
    "linear attention": (family("qwen3_5_text", **LINEAR), "sdpa"),
    "linear attention of a multimodal model": (family("qwen3_5", LINEAR), "sdpa"),
    "a state space": (family("bamba", attn_layer_indices=[1], **MAMBA), "sdpa"),
    "a convolution": (family("lfm2", layer_types=["conv", "full_attention"]), "sdpa"),
    "attention to later tokens": (family("bert-generation", is_decoder=False), "sdpa"),
    "attention to later tokens of a prompt": (family("paligemma", {"model_type": "gemma"}), "sdpa"),
    "biases by distance": (family("bloom"), "eager"),
    "a cache instead of attention": (family("mamba"), "eager"),
    "positions scaled by length": (
        family(
            "llama",
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "short_factor": [1.0] * 8,
                "long_factor": [8.0] * 8, "original_max_position_embeddings": 64,
            },
        ), "sdpa",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_model_that_computes_packed_sequences_differently_is_refused(name: str, tmp_path: Path) -> None:
    config, attention = DIFFERENT[name]
    path = save(config, tmp_path)
    model = released(path, attention)
    with pytest.raises(PolicyError) as refusal:
        check_faithfulness(model, attention, max_length=None)
    assert type(model).__name__ in str(refusal.value)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "segments"])
@pytest.mark.parametrize("window", [4, WINDOW - 1, WINDOW + 1, None])
def test_a_window_that_is_off_by_one_is_found(
    window: int | None, attention: Attention, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(family("mistral", sliding_window=WINDOW), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation=attention)
    check_faithfulness(model, attention, max_length=None)
    monkeypatch.setattr(faithfulness, "attention_windows", lambda config: {"sliding_attention": window})
    with pytest.raises(PolicyError, match=r"up to [0-9.]+ nats.* are tolerated.*names sliding_attention"):
        check_faithfulness(model, attention, max_length=None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_length", [16, 64, 512, None])
def test_the_check_finds_a_window_at_any_length(
    dtype: torch.dtype, max_length: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for window in (None, 4):
        config = family("mistral", sliding_window=window)
        model = AutoModelForCausalLM.from_pretrained(save(config, tmp_path / str(window)), dtype=dtype)
        check_faithfulness(model, "sdpa", max_length)
    monkeypatch.setattr(faithfulness, "attention_windows", lambda config: {"full_attention": None})
    with pytest.raises(PolicyError, match="sliding_attention"):
        check_faithfulness(model, "sdpa", max_length)


def test_caps_and_sinks_are_not_left_out_by_an_implementation_without_them(tmp_path: Path) -> None:
    capped, sinks = save(WINDOWED["gemma2"], tmp_path / "capped"), save(WINDOWED["gpt_oss"], tmp_path / "sinks")
    for attention in ("sdpa", "segments"):
        with pytest.raises(PolicyError, match="can't cap attention scores"):
            Policy.load(capped, "cpu", attention=attention, lora=ATTENTION)
    with pytest.raises(PolicyError, match="attention"):
        Policy.load(sinks, "cpu", attention="sdpa", lora=ATTENTION)


# What else the configuration decides


def test_only_the_language_model_of_a_multimodal_model_is_adapted(tmp_path: Path) -> None:
    config = family("gemma3", SLIDING | {"layer_types": ["full_attention"] * 2})
    adapter = initial_adapter(save_config(config, tmp_path), ATTENTION)
    assert adapter and not [name for name in adapter if "vision" in name]


def save_config(config: PreTrainedConfig, path: Path) -> Path:
    config.save_pretrained(path)
    return path


def test_a_multimodal_checkpoint_is_trained_as_its_language_model_computes(tmp_path: Path) -> None:
    config = family("qwen3_5", LINEAR | {"layer_types": ["full_attention"] * 2})
    torch.manual_seed(7)
    model = AutoModelForImageTextToText.from_config(config).eval()
    model.save_pretrained(tmp_path)
    assert "vision_config" in (tmp_path / "config.json").read_text()
    policy = Policy.load(tmp_path, "cpu", lora=ATTENTION)
    # Adapters are named as in the whole checkpoint, which vLLM serves.
    names = {name.rpartition(".self_attn")[0] for name in policy.parameters}
    assert names == {f"base_model.model.model.language_model.layers.{layer}" for layer in (0, 1)}
    assert initial_adapter(tmp_path, ATTENTION).keys() == policy.parameters.keys()
    token_ids = torch.tensor(policy.probe_token_ids)
    with torch.no_grad():
        log_softmax = model(token_ids[None]).logits[0, :-1].log_softmax(-1)
    expected = log_softmax.gather(1, token_ids[1:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(policy.probe()), expected, rtol=0, atol=1e-5)


def test_dropout_and_router_noise_are_removed_everywhere() -> None:
    config = family("gemma3", {"attention_dropout": 0.5})
    config.vision_config.attention_dropout = 0.5
    remove_randomness(config)
    assert config.text_config.attention_dropout == config.vision_config.attention_dropout == 0
    noisy = family("phimoe", router_jitter_noise=0.1, input_jitter_noise=0.1)
    remove_randomness(noisy)
    assert noisy.router_jitter_noise == noisy.input_jitter_noise == 0


def test_sizes_are_those_of_the_language_model() -> None:
    config = family("gemma3", SLIDING)
    assert longest_sequence(config) == 512
    assert attention_kinds(config) == {"sliding_attention", "full_attention"}
    assert longest_sequence(CONFIG_MAPPING["mpt"](max_seq_len=77)) == 77
    assert longest_sequence(CONFIG_MAPPING["mamba"]()) is None


def test_files_without_all_weights_are_refused(tmp_path: Path) -> None:
    """Transformers would fill them with random numbers."""
    path = save_model(tmp_path / "whole")
    config = small_config(num_hidden_layers=3)
    config.save_pretrained(path)
    with pytest.raises(PolicyError, match=r"lack \d+ weights .* model\.layers\.2\."):
        Policy.load(path, "cpu")
