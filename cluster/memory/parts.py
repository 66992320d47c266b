"""Bytes of a learner and of an engine on their GPUs.

Parameters and cache entries are counted on the model (`tandem.rl.models.geometry`). Activations and buffers are upper
estimates: each term is written out here, and no figure was measured on a GPU. Importing this needs no torch.

Bytes are those of one GPU: of one rank of tensor parallelism, and of one learner of a sharded group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tandem.cluster.config import BaseModelConfig, LearnersConfig
from tandem.cluster.engine.setup.settings import lora_slot_rank

if TYPE_CHECKING:
    from tandem.rl.models.geometry import Geometry

GB = 10**9
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "auto": 2}
FLOAT_BYTES = 4
CHUNK_TOKENS = 1024
"""Default of logprob_calculation_chunk_size. vLLM scores prompts in chunks of the same size (v1/worker/gpu/sample)."""
CONTEXT_BYTES = 600 << 20
"""A process's CUDA context and kernels, outside torch's allocator. Assumed; nvidia-smi shows it for an idle process."""
NCCL_BYTES = 500 << 20
"""Buffers of NCCL's channels in a rank of a group. Assumed; NCCL_BUFFSIZE (4 MiB) per channel and peer makes most."""
GRAPH_BYTES = 2 << 30
"""vLLM's CUDA graphs, captured with and without LoRA. Assumed; vLLM logs "Graph capturing finished ... took"."""
STEP_TOKENS = {True: 8192, False: 2048}
"""vLLM's max_num_batched_tokens of a server, on GPUs of at least 70 GiB and on others (engine/arg_utils.py)."""
SAMPLED = {True: 1024, False: 256}
"""vLLM's max_num_seqs there."""
LARGE_GPU_BYTES = 70 << 30


@dataclass(frozen=True)
class LearnerMemory:
    """Bytes of a learner on its GPU."""

    weights: int
    lora: int
    activations: int
    other_models: int
    """States of models that train by turns, and those kept for a next job."""
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.lora + self.activations + self.other_models + self.overhead

    @property
    def idle(self) -> int:
        """What stays between jobs."""
        return self.total - self.activations


@dataclass(frozen=True)
class EngineMemory:
    """Bytes of an engine on each of its GPUs, without the KV cache."""

    weights: int
    lora: int
    buffers: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.lora + self.buffers + self.overhead

    @property
    def asleep(self) -> int:
        """What stays while the engine sleeps: weights and LoRA slots go to main memory, buffers and graphs stay."""
        return self.buffers + self.overhead


def tensor_parallel_size(base: BaseModelConfig) -> int:
    """Return the number of GPUs of an engine replica."""
    return base.engine.tensor_parallel_size


def learner_memory(base: BaseModelConfig, geometry: Geometry, row_tokens: int) -> LearnerMemory:
    """Return what a learner needs on a GPU for packed rows of this many tokens."""
    learners, shard = base.learners, base.learners.shard
    width = DTYPE_BYTES[learners.dtype]
    weights = width * geometry.num_parameters
    if shard > 1:  # the rest of the model, a part of each layer, and the layer in use beside the next one
        outside = geometry.num_parameters - geometry.layer_parameters
        weights = width * (outside + geometry.layer_parameters // shard + 2 * geometry.largest_layer_parameters)
    state = 2 * FLOAT_BYTES * geometry.lora_parameters  # AdamW's two moments
    return LearnerMemory(
        weights=weights,
        # value, gradient and moments in float32, one more copy while the optimizer steps, and where models have other
        # settings, the adapter of another one to score under
        lora=(5 if base.largest_lora.fits(base.lora) else 6) * FLOAT_BYTES * geometry.lora_parameters,
        activations=activation_bytes(geometry, row_tokens, width, learners),
        other_models=(learners.jobs_at_once - 1) * (state + FLOAT_BYTES * geometry.lora_parameters)
        + learners.kept_device_bytes,
        overhead=CONTEXT_BYTES + (NCCL_BYTES if learners.count > 1 else 0),
    )


def activation_bytes(geometry: Geometry, row_tokens: int, width: int, learners: LearnersConfig) -> int:
    """Return an upper estimate of a gradient step's activations. `width`: bytes of a number in the base's dtype.

    With gradient checkpointing, the input of every layer is kept, and one layer at a time is computed again. Without,
    all of every layer is kept. Beside that there is either the backward pass of one layer, with three float32 copies of
    its widest matrix product, or a chunk of logits: three float32 copies and one in the base's dtype.
    """
    layer = width * geometry.saved_width * row_tokens
    kept = width * geometry.hidden_size * row_tokens * geometry.num_layers
    if learners.gradient_checkpointing is False:
        kept = layer * geometry.num_layers
    backward = layer + 3 * FLOAT_BYTES * geometry.widest * row_tokens
    logits = (3 * FLOAT_BYTES + width) * min(CHUNK_TOKENS, row_tokens) * geometry.vocab_size
    derivative = FLOAT_BYTES * geometry.hidden_size * row_tokens  # of each logprob by the last hidden state
    masks = {"sdpa": width, "eager": geometry.num_heads * (width + FLOAT_BYTES)}.get(learners.attention, 0)
    return kept + max(backward, logits) + derivative + masks * row_tokens**2


def engine_memory(base: BaseModelConfig, geometry: Geometry, gpu_bytes: int, max_loras: int) -> EngineMemory:
    """Return what an engine needs on each of its GPUs beside the KV cache."""
    parallel, width = tensor_parallel_size(base), DTYPE_BYTES[base.engine.dtype]
    is_large = gpu_bytes >= LARGE_GPU_BYTES
    tokens, sampled = STEP_TOKENS[is_large], base.engine.max_num_seqs or SAMPLED[is_large]
    hidden = width * tokens * (geometry.saved_width // parallel + 4 * geometry.hidden_size) // 2  # nothing is kept
    logits = 3 * FLOAT_BYTES * max(sampled, CHUNK_TOKENS) * geometry.vocab_size  # logits, logprobs, a copy
    return EngineMemory(
        weights=_engine_weights(geometry, width, parallel),
        lora=max_loras * slot_bytes(geometry, base.largest_lora.r, width, parallel),
        buffers=hidden + logits + GRAPH_BYTES,
        overhead=CONTEXT_BYTES + (NCCL_BYTES if parallel > 1 else 0),
    )


def _engine_weights(geometry: Geometry, width: int, parallel: int) -> int:
    split = geometry.split_parameters // parallel + geometry.kv_parameters // min(parallel, geometry.num_kv_heads)
    per_rank = width * (split + geometry.replicated_parameters)
    if geometry.quantized_bits is None:
        return per_rank
    quantized = geometry.layer_parameters // parallel
    return per_rank - quantized * width + quantized * geometry.quantized_bits // 8


def slot_bytes(geometry: Geometry, rank: int, width: int, parallel: int) -> int:
    """Return the bytes of a LoRA slot as vLLM allocates it, of the next rank that it has (vllm/lora/layers).

    A of a layer whose outputs are split, and B of one whose inputs are, are whole on every rank.
    """
    total = 0
    for layer in geometry.adapted:
        inputs, outputs = layer.inputs, layer.outputs
        if layer.name in ("o_proj", "down_proj"):
            inputs //= parallel
        elif layer.name in ("k_proj", "v_proj"):
            outputs //= min(parallel, geometry.num_kv_heads)
        else:
            outputs //= parallel
        total += layer.count * (inputs + outputs)
    return total * lora_slot_rank(rank) * width


def sequence_kv_bytes(geometry: Geometry, num_tokens: int, width: int, parallel: int = 1) -> int:
    """Return the bytes that a sequence of this length has in the KV cache of one rank."""
    total = 0
    for layers in geometry.kv_layers:
        heads = -(-layers.num_heads // parallel)
        kept = num_tokens if layers.reach is None else min(num_tokens, layers.reach)
        total += layers.count * heads * layers.values_per_head * width * (kept if layers.reach != 0 else 1)
    return total


def gb(size: int) -> str:
    return f"{size / GB:.1f} GB"
