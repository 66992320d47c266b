"""The policy: a frozen base model with one trainable LoRA adapter, evaluated on packed sequences.

Device, dtype and attention implementation are decided here and nowhere else.

Shapes: T tokens of a packed sequence. "Prediction-aligned": entry t is about the prediction made at t, of token t + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from transformers import PreTrainedModel

from tandem.rl.errors import PolicyError
from tandem.rl.logprobs import PLAIN, LogitRule, target_logprobs, token_logprobs
from tandem.rl.losses import shift_left
from tandem.rl.models.attention.masks import Attention, forward_inputs
from tandem.rl.models.attention.windows import attention_windows
from tandem.rl.models.base_config import (
    check_config,
    longest_sequence,
    read_config,
    remove_randomness,
    shares_prefixes,
)
from tandem.rl.models.base_weights import load_model, takes_attention_functions
from tandem.rl.models.faithfulness import can_prune_last_layer, check_faithfulness
from tandem.rl.models.layers.compiled_layers import compile_layers
from tandem.rl.models.layers.last_layer import LEAST_PRUNED, hidden_at
from tandem.rl.models.layers.recurrent_layers import separate_sequences
from tandem.rl.models.layers.rms_norm import use_fast_rms_norms
from tandem.rl.models.layers.routing import RouterMargins
from tandem.rl.models.lora.adapter import (
    adapter_config,
    add_adapter,
    detach_adapter,
    initial_adapter,
    initial_state,
)
from tandem.rl.models.reference import caps_attention
from tandem.rl.models.sharding import Shards
from tandem.rl.packing import PackedSequence, one_segment
from tandem.rl.probe import PROBE_TOKENS, probe_token_ids
from tandem.rl.settings import LoraSettings

__all__ = ["Policy", "PolicyError", "initial_adapter", "resolve_device"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str = "auto") -> torch.device:
    """Return the device; auto: CUDA if available, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise PolicyError("The device is cuda, but torch sees no GPU here. Use cpu or auto, or install torch for CUDA.")
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the dtype of the frozen base weights; auto: bfloat16 on CUDA, else float32."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return _DTYPES[dtype]


def resolve_attention(
    attention: Attention | Literal["auto"], device: torch.device, caps_scores: bool = False
) -> Attention:
    """Return the implementation; auto: FlexAttention (block-sparse masks) on CUDA, attention by segments on a CPU.

    `caps_scores`: the model caps its attention scores, which only FlexAttention and the model's own code can do.
    """
    if attention == "auto" and device.type == "cuda":
        return "flex_attention"
    if attention == "auto":
        return "eager" if caps_scores else "segments"
    if caps_scores and attention in ("segments", "sdpa"):
        raise PolicyError(
            f"{attention} can't cap attention scores, as this base model does. Use flex_attention, eager or auto."
        )
    if attention == "flex_attention" and device.type == "cpu":
        raise PolicyError("flex_attention has no backward pass on a CPU. Use segments or auto.")
    if attention == "segments" and device.type != "cpu":
        raise PolicyError(f"segments runs on a CPU, and the device is {device.type}. Use flex_attention or auto.")
    return attention


class Policy:
    """A base model and its adapter. Train mode and gradient checkpointing don't change any result."""

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        parameters: dict[str, nn.Parameter],
        attention: Attention,
        lora: LoraSettings,
        rule: LogitRule = PLAIN,
        max_length: int | None = None,
        prunes: bool = False,
        shards: Shards | None = None,
        compiles: bool = False,
    ) -> None:
        torch.set_float32_matmul_precision("highest")  # float32 stays float32 on a GPU: no TF32, in no kernel
        self._causal_lm = causal_lm
        self._decoder: nn.Module = causal_lm.get_decoder()
        self._head: Tensor = causal_lm.get_output_embeddings().weight
        self._rule = rule
        self._windows = attention_windows(causal_lm.config)
        self._attention: Attention = attention
        self._lora = lora
        self.shares_prefixes = shares_prefixes(causal_lm.config)
        """Whether sequences of a row may share a prefix. If not, `pack` rows with shares_prefixes=False."""
        self.prunes_last_layer = prunes
        """Whether the last layer leaves out tokens of which no logprob is wanted."""
        self.shards = shards
        """The learners that hold the base weights together; None if this one has all of them."""
        self.compiles = compiles or attention == "flex_attention"
        """Whether the first rows take far longer, because torch compiles kernels for all others."""
        self.router_margins = RouterMargins(self._decoder)
        self.parameters = parameters
        """The trainable float32 parameters under their PEFT names; others after `use_lora`."""
        self.device = self._head.device
        self.dtype = self._head.dtype
        """Of the frozen base weights."""
        num_tokens = min(PROBE_TOKENS, max_length or longest_sequence(causal_lm.config) or PROBE_TOKENS)
        self.probe_token_ids = probe_token_ids(causal_lm.config, num_tokens)
        self.load_adapter_state(initial_state({name: p.shape for name, p in self.parameters.items()}, lora))

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str = "auto",
        dtype: str = "auto",
        attention: Attention | Literal["auto"] = "auto",
        lora: LoraSettings | None = None,
        gradient_checkpointing: bool | None = None,
        max_length: int | None = None,
        shard_group: ProcessGroup | None = None,
        compile: bool | None = None,
    ) -> Policy:
        """Load the base model at `path` (a directory or a Hugging Face id) with the adapter of version 0.

        `gradient_checkpointing` recomputes each layer in the backward pass to save memory; None: on CUDA only.
        `max_length` is that of the longest sequence in use, in tokens; None: the model's own limit.
        The processes of `shard_group` hold the layers together (`rl.models.sharding`) and make equal calls.
        `compile` lets torch compile the decoder layers; None: on CUDA, except for sharded layers and recurrent ones,
        whose loops over a row would be compiled for each length.
        Raises PolicyError for a model or device that can't be trained faithfully.
        """
        lora = lora or LoraSettings()
        place = resolve_device(device)
        config = read_config(path)
        check_config(config, max_length)
        implementation = resolve_attention(attention, place, caps_attention(config))
        remove_randomness(config)
        shards = None if shard_group is None else Shards(shard_group, place)
        causal_lm = load_model(path, config, resolve_dtype(dtype, place), implementation, place, shards)
        if attention == "auto" and not takes_attention_functions(causal_lm):
            implementation = "sdpa"  # an older model class, which calls torch's attention itself
            causal_lm.set_attn_implementation(implementation)
        if gradient_checkpointing is None:
            gradient_checkpointing = place.type == "cuda"
        if gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = add_adapter(causal_lm, lora)
        is_plain = place.type == "cuda" and shards is None and shares_prefixes(config)
        compiles = is_plain if compile is None else compile
        if not compiles:
            use_fast_rms_norms(causal_lm.get_decoder())
        separate_sequences(causal_lm.get_decoder(), place)
        causal_lm.train(gradient_checkpointing)  # transformers checkpoints in train mode only
        prunes = not compiles and can_prune_last_layer(causal_lm, implementation)
        rule = check_faithfulness(causal_lm, implementation, max_length, prunes)
        policy = cls(causal_lm, parameters, implementation, lora, rule, max_length, prunes, shards, compiles)
        if compiles:  # last, because checks run the layers with attention of other kinds
            compile_layers(causal_lm.get_decoder())
        return policy

    def logprobs(
        self, packed: PackedSequence, chunk_size: int = 1024, with_entropy: bool = False, trained_only: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return prediction-aligned float32 logprobs [T] and entropy [T] (empty without `with_entropy`).

        NaN at the last token of each segment, whose successor belongs to another segment. With `trained_only`, also
        NaN wherever the next token isn't trained, without any computation there.
        The logprobs carry the gradient, except under torch.no_grad().
        """
        packed = packed.to(self.device)
        predicts = _predicted_positions(packed, trained_only)
        hidden = self._hidden_at(packed, predicts)
        targets = shift_left(packed.token_ids, 0)
        values, entropy = token_logprobs(hidden, self._head, targets[predicts], chunk_size, with_entropy, self._rule)

        def spread(known: Tensor) -> Tensor:
            return known.new_full((packed.num_tokens,), float("nan")).index_copy(0, predicts, known)

        return spread(values), spread(entropy) if with_entropy else entropy

    def target_logprobs(
        self, packed: PackedSequence, places: Tensor, targets: Tensor, counted: Tensor, chunk_size: int = 1024
    ) -> Tensor:
        """Return float32 logprobs [M] of any tokens `targets` [M] after the tokens `places` [M] of a row.

        A place may occur several times, and its target needn't be in the row. The logprobs carry the gradient where
        they are `counted` [M], bool, except under torch.no_grad().
        """
        wanted, rows = places.to(self.device).unique(return_inverse=True)
        hidden = self._hidden_at(packed.to(self.device), wanted)
        targets, counted = targets.to(self.device), counted.to(self.device)
        return target_logprobs(hidden, self._head, rows, targets, counted, chunk_size, self._rule)

    def _hidden_at(self, packed: PackedSequence, wanted: Tensor) -> Tensor:
        """Return the decoder's outputs [N, H] at the indices `wanted` [N], sorted, of a row."""
        inputs = forward_inputs(packed, self._attention, self._head.dtype, self._windows, self.shares_prefixes)
        prune = self.prunes_last_layer and packed.num_tokens - wanted.numel() >= LEAST_PRUNED
        return hidden_at(self._decoder, inputs, wanted, prune)

    @torch.no_grad()
    def probe(self) -> list[float]:
        """Return the logprobs of the probe under the loaded adapter: of each of `probe_token_ids` but the first."""
        logprobs, _ = self.logprobs(one_segment(torch.tensor(self.probe_token_ids)))
        found: list[float] = logprobs[:-1].tolist()
        return found

    def idle_passes(self, num_rows: int) -> int:
        """Return how many passes this learner adds to those of its rows, in step with those that share its weights.

        All of them call this before their rows.
        """
        return self.shards.most(num_rows) - num_rows if self.shards else 0

    def idle_pass(self) -> None:
        """Run forward, and backward if gradients are on, without any effect."""
        logprobs, _ = self.logprobs(one_segment(torch.tensor(self.probe_token_ids[:2])))
        if logprobs.requires_grad:
            logprobs.backward(torch.zeros_like(logprobs))

    @property
    def lora(self) -> LoraSettings:
        """The settings of the adapter."""
        return self._lora

    def use_lora(self, lora: LoraSettings) -> Callable[[], None]:
        """Take an adapter with other settings, whose weights are zero, and then `parameters` of it.

        Return a function that restores the earlier adapter and its weights. Nothing changes if the settings are
        the same. Raises PolicyError, and changes nothing, for modules that the base model doesn't have.
        """
        if lora.fits(self._lora):
            return lambda: None
        before = self._lora, self.parameters
        put_back = detach_adapter(self._causal_lm)
        try:
            parameters = add_adapter(self._causal_lm, lora)
        except PolicyError:
            put_back()
            raise
        self._lora, self.parameters = lora, parameters

        def restore() -> None:
            detach_adapter(self._causal_lm)
            put_back()
            self._lora, self.parameters = before

        return restore

    def adapter_state(self) -> dict[str, Tensor]:
        """Return a copy of the adapter on the CPU, under PEFT names."""
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def load_adapter_state(self, state: Mapping[str, Tensor]) -> None:
        """Load another version's adapter in place. Raises PolicyError if it doesn't fit base model and settings."""
        check_tensors("adapter", {name: parameter.shape for name, parameter in self.parameters.items()}, state)
        for name, parameter in self.parameters.items():
            parameter.copy_(state[name])

    def adapter_config(self) -> dict[str, Any]:
        """Return the content of PEFT's adapter_config.json."""
        return adapter_config(self._lora)


def check_tensors(what: str, expected: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> None:
    """Raise PolicyError unless `given` has exactly the expected names and shapes."""
    for name in sorted(expected.keys() | given.keys()):
        wanted = tuple(expected[name]) if name in expected else "no such tensor"
        found = tuple(given[name].shape) if name in given else "nothing"
        if wanted != found:
            raise PolicyError(
                f"The {what} does not fit this policy: at {name} it has {found}, the policy expects {wanted}. "
                f"It was made for another base model, rank or set of target modules."
            )


def _predicted_positions(packed: PackedSequence, trained_only: bool) -> Tensor:
    """Return the indices t whose next token continues the segment; with `trained_only`, if it is trained."""
    continues = shift_left(packed.segment_ids, -1) == packed.segment_ids
    trained = shift_left(packed.is_trained, False)
    assert not (trained & ~continues).any(), "the first token of a segment has no prediction, so it can't be trained"
    return (trained if trained_only else continues).nonzero().squeeze(1)
