"""The sizes of a base model that its memory follows from, counted on the model itself without its weights.

The model is built on torch's meta device, so parameters are counted and not derived from a formula per family.
`tandem.cluster.memory` does the arithmetic on a `Geometry`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from tandem.rl.gradient_step.work import ModelWork
from tandem.rl.models.base_config import attention_kinds, text_config
from tandem.rl.models.base_weights import empty_model
from tandem.rl.models.lora.adapter import add_adapter
from tandem.rl.models.lora.experts import TARGET
from tandem.rl.models.lora.linear import LINEAR_LAYERS
from tandem.rl.settings import LoraSettings

_FULL = {"full_attention", "attention", "global"}
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_KEY_VALUE = re.compile(r"\b[kv]_proj\.")
_REPLICATED = re.compile(r"\b(router|gate|q_a_proj|kv_a_proj_with_mqa)\.weight$")  # vLLM's ReplicatedLinear
_EXPERTS = re.compile(r"\bexperts\b")
_PACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that vLLM computes as one; it allocates LoRA slots for all of them if one is adapted."""
_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}


@dataclass(frozen=True)
class AdaptedLayers:
    """Linear layers of one name that have LoRA, or that vLLM computes together with one that has."""

    name: str
    inputs: int
    outputs: int
    count: int
    """Layers of that name and shape; an expert counts as one."""


@dataclass(frozen=True)
class KvLayers:
    """Layers that keep the same bytes per token or per sequence in an engine's cache."""

    count: int
    num_heads: int
    """Key-value heads, which tensor parallelism divides; 1 where every rank keeps the same."""
    values_per_head: int
    """Numbers that a head keeps per token, or per sequence if `reach` is 0: key and value together."""
    reach: int | None
    """Tokens of a sequence that the layer keeps; None: all of them; 0: a state of constant size."""


@dataclass(frozen=True)
class Geometry:
    """Sizes of a base model with an adapter. Parameters are counted once where weights are tied."""

    family: str
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_layers: int
    num_parameters: int
    """All parameters without LoRA, as a learner loads them: with the encoders of images and audio.

    The next three are those that an engine loads, which serves text alone, by how tensor parallelism splits them.
    """
    split_parameters: int
    """In matrices, which every rank has a part of."""
    kv_parameters: int
    """In key and value projections, which no more ranks than key-value heads can split."""
    replicated_parameters: int
    """In norms, biases and routers, which every rank has."""
    layer_parameters: int
    """In all decoder layers."""
    largest_layer_parameters: int
    widest: int
    """The most inputs or outputs of a linear layer, or of the chosen experts together."""
    saved_width: int
    """Numbers per token that the backward pass of the largest layer needs, an upper estimate."""
    kv_layers: tuple[KvLayers, ...]
    lora_parameters: int
    """Trained parameters of one adapter."""
    adapted: tuple[AdaptedLayers, ...]
    quantized_bits: int | None
    """Bits of a weight inside the decoder layers in the files; None: as many as the dtype has."""
    work: ModelWork
    """What the operations of a gradient step follow from."""

    @property
    def num_kv_heads(self) -> int:
        return max((layers.num_heads for layers in self.kv_layers), default=1)


def geometry_of(config: PreTrainedConfig, lora: LoraSettings) -> Geometry:
    """Count the model of this configuration. Raises PolicyError as loading it would, from its configuration alone."""
    with torch.device("meta"):
        model = empty_model(config)
        text, layers = text_config(config), decoder_layers(model)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        served = _served_parameters(model)
        of_layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
        largest = layers[of_layers.index(max(of_layers))]
        widest, saved = _widths(largest, text)
        weights = _matmul_weights(model, text)
        neighbours = _linear_shapes(model.get_decoder(), _with_neighbours(lora.target_modules))
        adapter = add_adapter(model, lora)
    return Geometry(
        family=str(config.model_type),
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        num_heads=int(text.num_attention_heads),
        num_layers=len(layers),
        num_parameters=num_parameters,
        split_parameters=served["split"],
        kv_parameters=served["kv"],
        replicated_parameters=served["replicated"],
        layer_parameters=sum(of_layers),
        largest_layer_parameters=max(of_layers),
        widest=widest,
        saved_width=saved,
        kv_layers=kv_layers(config),
        lora_parameters=sum(parameter.numel() for parameter in adapter.values()),
        adapted=_adapted(adapter, neighbours, lora.r),
        quantized_bits=_quantized_bits(config),
        work=ModelWork(weights, _attention_width(config)),
    )


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of the language model, which gradient checkpointing recomputes one by one."""
    decoder: nn.Module = model.get_decoder()
    layers: list[nn.Module] = [m for m in decoder.modules() if isinstance(m, GradientCheckpointingLayer)]
    return layers or [decoder]  # an older model class is one layer, because nothing says where it could be cut


def kv_layers(config: PreTrainedConfig) -> tuple[KvLayers, ...]:
    """Return the layers of an engine's cache, those that keep the same together."""
    found: dict[KvLayers, int] = {}
    for own, kind in _layer_configs(config):
        layer = _kv_layer(own, kind)
        found[layer] = found.get(layer, 0) + 1
    return tuple(KvLayers(count, layer.num_heads, layer.values_per_head, layer.reach) for layer, count in found.items())


def _kv_layer(own: PreTrainedConfig, kind: str) -> KvLayers:
    heads, size = int(getattr(own, "num_key_value_heads", None) or own.num_attention_heads), _head_size(own)
    if latent := getattr(own, "kv_lora_rank", None):  # multi-head latent attention keeps one vector for all heads
        return KvLayers(1, 1, int(latent) + int(own.qk_rope_head_dim), None)
    if kind in _FULL:
        return KvLayers(1, heads, 2 * size, None)
    if name := _WINDOWS.get(kind):
        window = getattr(own, name, None)
        return KvLayers(1, heads, 2 * size, int(window) if window else None)
    return KvLayers(1, 1, _state_values(own), 0)


def _head_size(own: PreTrainedConfig) -> int:
    return int(getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads)


def _state_values(text: PreTrainedConfig) -> int:
    """Return the numbers that a layer of linear attention (gated delta net) keeps per sequence; 0 for other kinds."""
    value_heads = getattr(text, "linear_num_value_heads", None)
    if not value_heads:
        return 0
    keys = text.linear_num_key_heads * text.linear_key_head_dim
    values = value_heads * text.linear_value_head_dim
    convolution = (2 * keys + values) * (text.linear_conv_kernel_dim - 1)
    return int(convolution + values * text.linear_key_head_dim)


def _layer_configs(config: PreTrainedConfig) -> list[tuple[PreTrainedConfig, str]]:
    """Return the configuration and the kind of each decoder layer: in some families, their heads differ in size."""
    text = text_config(config)
    count = int(text.num_hidden_layers)
    named = [str(kind) for kind in getattr(text, "layer_types", None) or ()]
    if len(named) != count:
        kinds = sorted(attention_kinds(config))
        named = [kinds[0] if len(kinds) == 1 else "full_attention"] * count  # the most memory, if it isn't said which
    return list(zip(text.per_layer_config, named, strict=True))


def _served_parameters(model: PreTrainedModel) -> dict[str, int]:
    """Count the parameters of the language model and of its output head, by how tensor parallelism splits them."""
    language_model = nn.ModuleList([model.get_decoder(), model.get_output_embeddings()])
    counted = {"split": 0, "kv": 0, "replicated": 0}
    for name, parameter in language_model.named_parameters():  # tied ones come once
        if parameter.dim() < 2 or _REPLICATED.search(name):
            kind = "replicated"
        else:
            kind = "kv" if _KEY_VALUE.search(name) else "split"
        counted[kind] += parameter.numel()
    return counted


def _matmul_weights(model: PreTrainedModel, text: PreTrainedConfig) -> int:
    """Return the weights of the matrix products that a token takes part in: all matrices but the embedding's, of the
    experts those that are chosen, and the output head."""
    outside = experts = 0
    for name, parameter in model.get_decoder().named_parameters():
        if _EXPERTS.search(name) and parameter.dim() >= 2:
            experts += parameter.numel()
        elif parameter.dim() == 2 and "embed" not in name:
            outside += parameter.numel()
    chosen = getattr(text, "num_experts_per_tok", None) or getattr(text, "num_experts_per_token", None) or 1
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    of_all = next((int(number) for name in names if (number := getattr(text, name, None))), 1)
    return outside + experts * int(chosen) // of_all + int(text.hidden_size) * int(text.vocab_size)


def _attention_width(config: PreTrainedConfig) -> int:
    width = 0
    for own, kind in _layer_configs(config):
        size = _head_size(own)
        if rope := getattr(own, "qk_rope_head_dim", None):  # multi-head latent attention: the mean of keys and values
            size = (int(own.qk_nope_head_dim) + int(rope) + int(own.v_head_dim)) // 2
        if _kv_layer(own, kind).reach is None:
            width += int(own.num_attention_heads) * size
    return width


def _widths(layer: nn.Module, text: PreTrainedConfig) -> tuple[int, int]:
    """Return the widest matrix of a layer, and the numbers per token that its backward pass needs.

    Each output of a linear layer is kept up to twice: as it is, and after what follows (norm, rotary positions,
    activation, product). So are eight vectors of the hidden size: residuals, inputs, and norms, partly in float32.
    """
    shapes = [(inputs, outputs) for name, inputs, outputs, _ in _linear_shapes(layer) if not _EXPERTS.search(name)]
    widest = max((max(shape) for shape in shapes), default=int(text.hidden_size))
    saved = 2 * sum(outputs for _, outputs in shapes) + 8 * int(text.hidden_size)
    chosen = getattr(text, "num_experts_per_tok", None) or getattr(text, "num_experts_per_token", None)
    if chosen and any(_EXPERTS.search(name) for name, _ in layer.named_parameters()):
        inner = int(getattr(text, "moe_intermediate_size", None) or text.intermediate_size)
        widest = max(widest, chosen * max(inner, int(text.hidden_size)))
        saved += chosen * (4 * inner + 3 * int(text.hidden_size))  # gate, up, activation, product; rows in and out
    return widest, saved


def _linear_shapes(module: nn.Module, names: Iterable[str] | None = None) -> list[tuple[str, int, int, int]]:
    """Return name, inputs, outputs and 1 for every linear layer, or for those whose last part is in `names`."""
    found = []
    for name, linear in module.named_modules():
        if isinstance(linear, LINEAR_LAYERS) and (names is None or name.rpartition(".")[2] in names):
            outputs, inputs = linear.weight.shape if isinstance(linear, nn.Linear) else reversed(linear.weight.shape)
            found.append((name, int(inputs), int(outputs), 1))
    return found


def _with_neighbours(targets: Iterable[str]) -> set[str]:
    names = set(targets)
    return names.union(*(packed for packed in _PACKED if names & set(packed)))


def _adapted(
    adapter: dict[str, nn.Parameter], neighbours: list[tuple[str, int, int, int]], rank: int
) -> tuple[AdaptedLayers, ...]:
    """Return the layers of an adapter, whose A may have a dimension of experts, and their neighbours without one."""
    shapes: dict[str, tuple[int, int, int]] = {}
    for name, parameter in adapter.items():
        layer, _, factor = name.removeprefix("base_model.model.").rpartition(".lora_")
        if factor.startswith("A"):
            other = adapter[name.replace(".lora_A.", ".lora_B.")]
            inputs, count = int(parameter.shape[-1]), parameter.numel() // (rank * int(parameter.shape[-1]))
            outputs = other.numel() // (rank * count)
            if layer.endswith(f"{TARGET}.base_layer"):  # one A for gate and up together; vLLM keeps one for each
                shapes[layer.replace("base_layer", "gate_proj")] = inputs, outputs // 2, 2 * count
            elif layer.endswith(TARGET):
                shapes[f"{layer}.down_proj"] = inputs, outputs, count
            else:
                shapes[layer] = inputs, outputs, count
    known = {layer.rpartition("layers.")[2] for layer in shapes}
    for layer, inputs, outputs, count in neighbours:
        if layer.rpartition("layers.")[2] not in known:
            shapes[layer] = inputs, outputs, count
    totals: dict[tuple[str, int, int], int] = {}
    for layer, (inputs, outputs, count) in shapes.items():
        key = layer.rpartition(".")[2], inputs, outputs
        totals[key] = totals.get(key, 0) + count
    return tuple(AdaptedLayers(name, inputs, outputs, count) for (name, inputs, outputs), count in totals.items())


def _quantized_bits(config: PreTrainedConfig) -> int | None:
    """Return the bits of a quantized weight; None if the files aren't quantized, or if it isn't said how."""
    settings: Any = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    found = settings if isinstance(settings, dict) else settings.to_dict()
    bits = found.get("bits") or found.get("w_bit") or _BITS.get(str(found.get("quant_method")))
    if not bits:
        groups = found.get("config_groups") or {}
        bits = next((group["weights"]["num_bits"] for group in groups.values() if group.get("weights")), None)
    return int(bits) if bits else None
