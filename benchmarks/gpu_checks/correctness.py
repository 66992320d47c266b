"""Parts that compare: attention, precision, graphs, the mask's memory, determinism, and recovery from full memory.

Each part fills in what it measured, as it goes, and returns what it found wrong: nothing if it passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from gpu_checks.rows import awkward, group_row
from gpu_checks.setting import Setting, cosine
from tandem.rl.config import LossConfig
from tandem.rl.errors import OutOfMemoryError
from tandem.rl.learner import Learner
from tandem.rl.models.attention.flex_attention import flex
from tandem.rl.models.attention.masks import block_mask, forward_inputs
from tandem.rl.models.layers.any_length import compile_for_any_length
from tandem.rl.packed_rows import PackedSequence, one_segment
from tandem.rl.policy import Policy

Measured = dict[str, Any]
MASK_BYTES = 4 << 20
MASK_PEAK_GB = 0.1


def _gradient(policy: Policy, row: PackedSequence) -> tuple[Tensor, Tensor]:
    """Return the logprobs of the row and the gradient of their sum, in float32 on the CPU."""
    logprobs, _ = policy.logprobs(row, trained_only=True)
    parts = torch.autograd.grad(logprobs.nansum(), list(policy.parameters.values()), allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters.values(), parts, strict=True)]
    return logprobs.detach().float().cpu(), torch.cat([g.flatten() for g in flat]).float().cpu()


def attention(setting: Setting, measured: Measured) -> list[str]:
    """Logprobs and gradients of Tandem's attention against SDPA's, in float32, over six awkward rows."""
    shape, worst = setting.sizes.small, {"logprob": 1e-3, "gradient": 1e-3}
    policies = {kind: setting.policy(shape, torch.float32, kind) for kind in (setting.own_attention, "sdpa")}
    rows = measured["rows"] = dict[str, Any]()
    faults = []
    for name, row in awkward(setting.sizes.unit, shape.vocabulary).items():
        (own, own_gradient), (dense, gradient) = (_gradient(policy, row) for policy in policies.values())
        found = {
            "tokens": row.num_tokens,
            "logprob": float((own - dense).nan_to_num().abs().max()),
            "gradient": float((own_gradient - gradient).norm() / gradient.norm().clamp_min(1e-30)),
        }
        rows[name] = found
        if not torch.equal(own.isnan(), dense.isnan()):
            faults.append(f"{name}: logprobs are known at other tokens")
        for key, most in worst.items():
            if not found[key] <= most:
                faults.append(f"{name}: {key} differs by {found[key]:.2g}, at most {most:g} is accepted")
    measured |= {"attention": setting.own_attention}
    return faults


def precision(setting: Setting, measured: Measured) -> list[str]:
    """The error of bfloat16, with everything that a job uses, against float32."""
    shape = setting.sizes.small
    row = awkward(setting.sizes.unit, shape.vocabulary)["branch in the middle"]
    exact, gradient = _gradient(setting.policy(shape, torch.float32, "sdpa"), row)
    half, half_gradient = _gradient(setting.policy(shape, torch.bfloat16, setting.own_attention), row)
    error = (half - exact)[exact.isfinite()].abs()
    found = {"mean": float(error.mean()), "max": float(error.max()), "gradient_cosine": cosine(half_gradient, gradient)}
    faults = [] if found["mean"] <= 0.02 else [f"the mean error of a logprob is {found['mean']:.2g}, accepted is 0.02"]
    if not found["gradient_cosine"] >= 0.99:
        faults.append(f"the gradient's cosine is {found['gradient_cosine']:.4f}, at least 0.99 is accepted")
    measured |= found
    return faults


def graphs(setting: Setting, measured: Measured) -> list[str]:
    """Graphs that torch compiles over 12 lengths after a warm-up. On a CPU, of FlexAttention without gradient."""
    torch._dynamo.reset()
    before, unit = counters["stats"]["unique_graphs"], setting.sizes.unit
    if setting.is_cuda:
        policy = setting.policy(setting.sizes.small, torch.bfloat16, setting.own_attention, compiles=True)
        learner = Learner(policy)
        learner.warm_up(4 * unit)
    else:
        compiled = compile_for_any_length(flex, fullgraph=True, backend="aot_eager")
    counts = []
    for number in range(12):
        num_tokens = unit * (number + 1) + 7 * number + 1
        if setting.is_cuda:
            learner.step([group_row(num_tokens, setting.sizes.small.vocabulary)], LossConfig(), 0.0)
        else:
            inputs = forward_inputs(
                one_segment(torch.zeros(num_tokens, dtype=torch.int64)), "flex_attention", torch.float32
            )
            query, key = (torch.randn(1, heads, inputs["input_ids"].shape[1], 16) for heads in (6, 2))
            with torch.no_grad():
                compiled(query, key, key, inputs["attention_mask"], 0.25)
        counts.append(counters["stats"]["unique_graphs"] - before)
    faults = [] if counts[-1] == counts[0] else [f"rows of new lengths compiled {counts[-1] - counts[0]} more graphs"]
    measured |= {"graphs_by_row": counts, "graph_breaks": sum(counters["graph_break"].values())}
    return faults


def mask(setting: Setting, measured: Measured) -> list[str]:
    """Memory of the block mask of a row of 32,768 tokens."""
    row = one_segment(torch.zeros(32_768, dtype=torch.int64)).to(setting.device)
    with setting.peak_memory() as peak:
        tables = [value for value in vars(block_mask(row)).values() if isinstance(value, Tensor)]
    found = {"bytes": sum(table.nbytes for table in tables), "peak_gb": peak[0]}
    faults = (
        [] if found["bytes"] <= MASK_BYTES else [f"the tables take {found['bytes']} bytes, accepted is {MASK_BYTES}"]
    )
    if peak[0] > MASK_PEAK_GB:
        faults.append(f"making it took {peak[0]:.2f} GB, accepted is {MASK_PEAK_GB}")
    measured |= found
    return faults


def determinism(setting: Setting, measured: Measured) -> list[str]:
    """The same gradient step twice, from the same state: equal bits, or by how much the adapters differ."""
    policy = setting.policy(setting.sizes.small, torch.bfloat16, setting.own_attention)
    learner, row = Learner(policy), group_row(4 * setting.sizes.unit, setting.sizes.small.vocabulary)
    start, ends = learner.state(), []
    for _ in range(2):
        learner.load_state(start)
        learner.forward_backward([row], LossConfig())
        ends.append(torch.cat([p.grad.flatten() for p in policy.parameters.values() if p.grad is not None]).cpu())
    difference = float((ends[0] - ends[1]).norm() / ends[0].norm())
    faults = (
        [] if difference <= 1e-3 else [f"two gradients differ by {difference:.2g} of their norm, accepted is 0.001"]
    )
    measured |= {"equal_bits": torch.equal(*ends), "relative_difference": difference}
    return faults


def out_of_memory(setting: Setting, measured: Measured) -> list[str]:
    """A step in a full memory is refused, and the next one in free memory equals an undisturbed one."""
    if not setting.is_cuda:
        measured["skipped"] = "needs a GPU"
        return []
    learner = Learner(setting.policy(setting.sizes.small, torch.bfloat16, setting.own_attention))
    row, start = group_row(8 * setting.sizes.unit, setting.sizes.small.vocabulary), learner.state()
    expected = learner.step([row], LossConfig(), 1e-4)
    learner.load_state(start)
    taken, size, was_refused = [], 1 << 30, False
    while size >= 1 << 20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device=setting.device))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            size //= 2
    try:
        learner.step([row], LossConfig(), 1e-4)
    except OutOfMemoryError:
        was_refused = True
    taken.clear()
    torch.cuda.empty_cache()
    learner.load_state(start)
    found = learner.step([row], LossConfig(), 1e-4)
    differences = {name: abs(found[name] - value) for name, value in expected.items()}
    faults = [] if was_refused else ["a step in a full memory wasn't refused"]
    faults += [
        f"{name} differs by {d:.2g} after it"
        for name, d in differences.items()
        if d > 1e-3 * abs(expected[name]) + 1e-6
    ]
    measured |= {"was_refused": was_refused, "largest_difference": max(differences.values())}
    return faults
