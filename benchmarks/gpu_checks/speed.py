"""Parts that measure speed: gradient steps by row length, the LoRA linear layer, and chunks of the output head.

Counts of floating-point operations, stated with the results. A frozen weight costs 4 per token: 2 in the forward pass
and 2 for the gradient of its input; LoRA's own and recomputed layers aren't counted. Attention costs 12 D per head and
pair of query and key that see each other: 4 forward, 8 backward.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gpu_checks.correctness import Measured
from gpu_checks.rows import group_row, logical_tokens, seen_keys
from gpu_checks.setting import Setting, Shape, cosine
from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.logprobs import token_logprobs
from tandem.rl.models.lora.linear import LoraLinear, share_inputs
from tandem.rl.packed_rows import PackedSequence

ANCHOR = {"tokens_per_s": 6229, "mfu": 0.217, "what": "prime-rl, Qwen3-4B, LoRA 16, rows of 16k tokens, one H100"}
_RANK = 16


def step_flops(shape: Shape, row: PackedSequence) -> tuple[float, float]:
    """Return the operations of a step on the row, and those of its sequences without shared prefixes."""
    pairs, logical_pairs = seen_keys(row)
    of_pair = 12 * shape.layers * shape.heads * shape.head_dim
    of_token = 4 * shape.matmul_weights
    return row.num_tokens * of_token + pairs * of_pair, logical_tokens(row) * of_token + logical_pairs * of_pair


def rows(setting: Setting, measured: Measured) -> list[str]:
    """Tokens per second, share of the device's peak and memory of a gradient step, by row length, with LoRA 16."""
    shape, lengths = setting.sizes.large, setting.sizes.row_lengths
    learner = Learner(setting.policy(shape, torch.bfloat16, setting.own_attention, _RANK, compiles=setting.is_cuda))
    learner.warm_up(lengths[0])
    found = measured["rows"] = dict[str, Any]()
    measured |= {"peak_flops": setting.peak_flops, "anchor": ANCHOR, "flops": (__doc__ or "").split("\n\n")[1]}
    faults = []
    for length in lengths:
        row = group_row(length, shape.vocabulary)
        with setting.peak_memory() as peak:
            seconds, metrics = [], {}
            for _ in range(setting.sizes.repeats + 1):  # the first allocates
                began = time.perf_counter()
                metrics = learner.step([row], LossConfig(), 0.0)
                setting.wait()
                seconds.append(time.perf_counter() - began)
        least = min(seconds[1:])
        unique, logical = step_flops(shape, row)
        found[str(length)] = {
            "seconds": least,
            "tokens_per_s": row.num_tokens / least,
            "logical_tokens_per_s": logical_tokens(row) / least,
            "mfu_unique": unique / least / setting.peak_flops,
            "mfu_logical": logical / least / setting.peak_flops,
            "peak_gb_beyond_weights": peak[0],
        }
        if not math.isfinite(metrics["loss/grad_norm"]) or metrics["loss/grad_norm"] == 0:
            faults.append(f"{length} tokens: the gradient's norm is {metrics['loss/grad_norm']}")
    at_16k = found.get("16384", {}).get("tokens_per_s", math.inf)
    if not math.isnan(setting.peak_flops) and at_16k < ANCHOR["tokens_per_s"]:
        faults.append(f"{at_16k:.0f} tokens/s at 16,384 tokens, fewer than the anchor's {ANCHOR['tokens_per_s']}")
    return faults


class _Layer(nn.Module):
    """The linear layers of a decoder layer, without what lies between them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj, self.k_proj = nn.Linear(shape.hidden, wide, False), nn.Linear(shape.hidden, keys, False)
        self.v_proj, self.o_proj = nn.Linear(shape.hidden, keys, False), nn.Linear(wide, shape.hidden, False)
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, False)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        hidden = self.o_proj(query) + key.mean() + value.mean()
        out: Tensor = self.down_proj(self.gate_proj(hidden) * self.up_proj(hidden))
        return out


class _Counted(TorchDispatchMode):
    """Counts operations that compute, and the bytes that they read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch has no types here
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not func.is_view and func is not torch.ops.aten.detach.default:
            self.operations += 1
            tensors = [value for value in (*args, result) if isinstance(value, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def lora(setting: Setting, measured: Measured) -> list[str]:
    """The linear layers of a decoder layer with Tandem's LoRA, with PEFT's, and without any, in bfloat16."""
    shape = setting.sizes.large
    torch.manual_seed(0)
    plain = _Layer(shape).to(setting.device, torch.bfloat16).requires_grad_(False)
    names = list(dict(plain.named_children()))
    peft = inject_adapter_in_model(
        LoraConfig(r=_RANK, lora_alpha=2 * _RANK, target_modules=names), copy.deepcopy(plain)
    )
    ours = copy.deepcopy(plain)
    for name in names:
        setattr(ours, name, LoraLinear(getattr(ours, name), _RANK, 2.0))
    for own, other in zip(_adapter(ours), _adapter(peft), strict=True):
        own.data = torch.randn(own.shape, device=setting.device) * 0.02
        other.data = own.data.clone()
    share_inputs(ours)
    num_tokens = 8192 if setting.is_cuda else 64
    hidden = torch.randn(num_tokens, shape.hidden, device=setting.device, dtype=torch.bfloat16)
    found: dict[str, Any] = {"tokens": num_tokens}
    gradients = {}
    for name, layer in (("plain", plain), ("tandem", ours), ("peft", peft)):

        def work(layer: nn.Module = layer) -> list[Tensor]:
            leaf = hidden.clone().requires_grad_()
            return list(torch.autograd.grad(layer(leaf).float().mean() * 1e4, [leaf, *_adapter(layer)]))

        gradients[name] = work()
        with _Counted() as counted:
            work()
        found[name] = {
            "seconds": _seconds(setting, work),
            "operations": counted.operations,
            "bytes_per_token": counted.bytes / num_tokens,
        }
    cosines = [cosine(*pair) for pair in zip(gradients["tandem"], gradients["peft"], strict=True)]
    found["least_cosine"] = min(cosines)
    found["speed_over_peft"] = found["peft"]["seconds"] / found["tandem"]["seconds"]
    faults = (
        [] if min(cosines) >= 0.9999 else [f"the least cosine with PEFT's gradients is {min(cosines):.5f}, not 0.9999"]
    )
    if setting.is_cuda and found["speed_over_peft"] < 1:
        faults.append(f"it has {found['speed_over_peft']:.2f} times the speed of PEFT's")
    measured |= found
    return faults


def _adapter(layer: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in layer.named_parameters() if "lora_" in name]


def head(setting: Setting, measured: Measured) -> list[str]:
    """Logprobs and their gradient from hidden states, by chunk size: the seconds, the memory, and the same results."""
    shape, num_tokens = setting.sizes.large, 8192 if setting.is_cuda else 200
    generator = torch.Generator(setting.device).manual_seed(0)
    place: dict[str, Any] = {"device": setting.device, "dtype": torch.bfloat16, "generator": generator}
    hidden, weight = (
        torch.randn(num_tokens, shape.hidden, **place),
        torch.randn(shape.vocabulary, shape.hidden, **place) * 0.02,
    )
    targets = torch.randint(shape.vocabulary, (num_tokens,), device=setting.device, generator=generator)
    found: dict[str, Any] = {"tokens": num_tokens}
    results, faults = [], []
    for size in setting.sizes.head_chunks:

        def work(size: int = size) -> list[Tensor]:
            leaf = hidden.clone().requires_grad_()
            logprobs, _ = token_logprobs(leaf, weight, targets, size)
            return [logprobs.detach(), *torch.autograd.grad(logprobs.sum(), leaf)]

        with setting.peak_memory() as peak:
            results.append(work())
        found[str(size)] = {"seconds": _seconds(setting, work), "peak_gb": peak[0]}
        difference = float((results[-1][0] - results[0][0]).abs().max())
        if difference > 1e-2:
            faults.append(f"chunks of {size} tokens change a logprob by {difference:.2g}")
    measured |= found
    return faults


def _seconds(setting: Setting, work: Callable[[], object]) -> float:
    """Return the median of a few runs."""
    seconds = []
    for _ in range(setting.sizes.repeats):
        setting.wait()
        began = time.perf_counter()
        work()
        setting.wait()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
