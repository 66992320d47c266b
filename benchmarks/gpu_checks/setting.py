"""Models of random weights, made on the device from a configuration, and the sizes of every part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config

from tandem.cluster.metrics.peak_flops import peak_flops
from tandem.rl.models.attention.masks import Attention, transformers_name
from tandem.rl.models.faithfulness import check_faithfulness
from tandem.rl.models.layers.compiled_layers import compile_layers
from tandem.rl.models.lora.adapter import add_adapter
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings


@dataclass(frozen=True)
class Shape:
    """The shape of a Qwen3 model."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    vocabulary: int = 151_936

    def config(self) -> Qwen3Config:
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            max_position_embeddings=40_960,
            tie_word_embeddings=True,
        )

    @property
    def matmul_weights(self) -> int:
        """Weights of matrix products per token, the output embedding included."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocabulary


@dataclass(frozen=True)
class Sizes:
    small: Shape
    """For comparisons in float32."""
    large: Shape
    """For speed."""
    unit: int
    """Tokens: rows of comparisons have a few times as many."""
    row_lengths: tuple[int, ...]
    head_chunks: tuple[int, ...]
    repeats: int


QWEN3_0_6B = Shape(hidden=1024, intermediate=3072, layers=28, heads=16, kv_heads=8)
QWEN3_4B = Shape(hidden=2560, intermediate=9728, layers=36, heads=32, kv_heads=8)
_TOY = Shape(hidden=64, intermediate=96, layers=2, heads=6, kv_heads=2, head_dim=16, vocabulary=199)
SIZES = {
    "full": Sizes(QWEN3_0_6B, QWEN3_4B, 250, (2048, 8192, 16_384, 32_768), (256, 1024, 4096, 8192), 3),
    "toy": Sizes(_TOY, _TOY, 20, (128, 256), (32, 100), 1),
}


@dataclass(frozen=True)
class Setting:
    """Where a part runs."""

    device: torch.device
    sizes: Sizes

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def own_attention(self) -> Attention:
        """Tandem's own. FlexAttention has no backward pass on a CPU, so attention by segments takes its place there."""
        return "flex_attention" if self.is_cuda else "segments"

    @property
    def peak_flops(self) -> float:
        """NaN for a device that isn't in the table."""
        name = torch.cuda.get_device_name(self.device) if self.is_cuda else "CPU"
        return peak_flops(name) or math.nan

    def policy(
        self, shape: Shape, dtype: torch.dtype, attention: Attention, r: int = 16, compiles: bool = False
    ) -> Policy:
        """Return a policy as `Policy.load` makes it, with random weights and an adapter that changes its outputs."""
        torch.manual_seed(0)
        config, lora = shape.config(), LoraSettings(r=r, alpha=2 * r)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation=transformers_name(attention)
            )
        for parameter in model.parameters():  # the same numbers for every dtype, rounded; buffers stay float32
            parameter.data = parameter.data.to(dtype)
        if self.is_cuda:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        parameters = add_adapter(model, lora)
        model.train(self.is_cuda)
        rule = check_faithfulness(model, attention, max_length=min(1024, 4 * self.sizes.unit), prune=False)
        policy = Policy(model, parameters, attention, lora, rule, compiles=compiles)
        if compiles:
            compile_layers(model.get_decoder())
        generator = torch.Generator().manual_seed(1)
        state = policy.adapter_state()
        policy.load_adapter_state(
            {name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in state.items()}
        )
        return policy

    @contextmanager
    def peak_memory(self) -> Iterator[list[float]]:
        """Append to the list the most GB that the block allocated beyond those at its start; NaN on a CPU."""
        found: list[float] = []
        if not self.is_cuda:
            yield found
            found.append(math.nan)
            return
        torch.cuda.synchronize(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        yield found
        torch.cuda.synchronize(self.device)
        found.append((torch.cuda.max_memory_allocated(self.device) - before) / 1e9)

    def wait(self) -> None:
        """Wait until the device has done its work."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.cosine_similarity(left.double().flatten(), right.double().flatten(), dim=0))
