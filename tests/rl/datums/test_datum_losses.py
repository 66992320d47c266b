"""Losses of datums against hand-worked numbers and a plain loop over positions in float64."""

from __future__ import annotations

import math

import pytest
import torch
from plain_losses import policy_gradient_loss

from tandem.rl.datums.losses import LOSSES, Columns

E = math.e


def columns(datum_ids: list[int] | None = None, **values: list[float]) -> Columns:
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    length = len(next(iter(tensors.values())))
    return Columns(tensors, torch.tensor(datum_ids or [0] * length))


def loss_and_gradient(name: str, logprobs: list[float], inputs: Columns, **options: float) -> tuple[float, list[float]]:
    policy = torch.tensor(logprobs, dtype=torch.float64, requires_grad=True)
    loss = LOSSES[name].compute(policy, inputs, options).loss
    (gradient,) = torch.autograd.grad(loss, policy)
    return loss.item(), gradient.flatten().tolist()


def test_cross_entropy_by_hand() -> None:
    loss, gradient = loss_and_gradient("cross_entropy", [-1.0, -2.0, -3.0], columns(weights=[0.0, 0.5, -2.0]))
    assert (loss, gradient) == (0.5 * 2 - 2 * 3, [0.0, -0.5, 2.0])


def test_cross_entropy_of_several_targets_by_hand() -> None:
    inputs = columns(weights=[[0.5, 0.25], [0.0, 1.0]])
    loss, gradient = loss_and_gradient("cross_entropy", [[-1.0, -2.0], [-math.inf, -4.0]], inputs)
    assert (loss, gradient) == (0.5 + 0.5 + 4, [-0.5, -0.25, 0.0, -1.0])


@pytest.mark.parametrize(
    ("name", "options", "loss", "gradient"),
    [
        # Ratios e^0.5, e^-1 and 1 with advantages 1, -2 and 0.
        ("importance_sampling", {}, -(E**0.5) + 2 * E**-1, [-(E**0.5), 2 * E**-1, 0.0]),
        ("ppo", {}, -1.2 + 2 * 0.8, [0.0, 0.0, 0.0]),
        (
            "ppo",
            {"clip_low_threshold": 0.1, "clip_high_threshold": 2.0},
            -(E**0.5) + 2 / E,
            [-(E**0.5), 2 / E, 0.0],
        ),
        ("cispo", {"clip_high_threshold": 1.5}, -1.5 * -1.0 + 2 * E**-1 * -3.0, [-1.5, 2 * E**-1, 0.0]),
        ("dro", {"beta": 0.1}, 1.0 - 6.0 + 0.05 * 0.25 + 0.05, [-1 + 0.1 * 0.5, 2 + 0.1 * -1.0, 0.0]),
    ],
)  # fmt: skip
def test_policy_losses_by_hand(name: str, options: dict[str, float], loss: float, gradient: list[float]) -> None:
    inputs = columns(logprobs=[-1.5, -2.0, -5.0], advantages=[1.0, -2.0, 0.0])
    found, found_gradient = loss_and_gradient(name, [-1.0, -3.0, -5.0], inputs, **options)
    assert found == pytest.approx(loss, rel=1e-12)
    assert found_gradient == pytest.approx(gradient, rel=1e-12)


def test_gspo_has_one_ratio_per_datum_by_hand() -> None:
    inputs = columns(
        [0, 0, 1, 1],
        logprobs=[-1.0, -2.0, -1.0, -1.0],
        advantages=[1.0, 1.0, -1.0, 0.0],
        sequence_ratio_mask=[1.0, 1.0, 1.0, 0.0],
    )
    loss, gradient = loss_and_gradient("gspo", [-0.9, -1.9, -1.1, -9.0], inputs)
    s, t = math.exp(0.1), math.exp(-0.1)
    assert loss == pytest.approx(-2 * s + t, rel=1e-12)
    assert gradient == pytest.approx([-s, -s, t, 0.0], rel=1e-12)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_losses_of_many_datums_are_those_of_a_loop(name: str) -> None:
    torch.manual_seed(3)
    lengths, f64 = [5, 1, 9, 4], torch.float64
    n = sum(lengths)
    policy = (-3 * torch.rand(n, dtype=f64)).requires_grad_()
    q = (policy.detach() + 0.4 * torch.randn(n, dtype=f64)).clamp(max=0)
    a = torch.randn(n, dtype=f64) * (torch.rand(n) > 0.3)
    low, high = 0.7 + 0.2 * torch.rand(n, dtype=f64), 1.1 + 0.4 * torch.rand(n, dtype=f64)
    mask = (torch.rand(n) > 0.4).to(f64)
    datum_ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    values = {"logprobs": q, "advantages": a, "sequence_ratio_mask": mask}
    if name in ("ppo", "cispo", "gspo"):
        values |= {"clip_low_threshold": low, "clip_high_threshold": high}
    loss = LOSSES[name].compute(policy, Columns(values, datum_ids), {"beta": 0.3}).loss
    parts = zip(*(t.split(lengths) for t in (policy, q, a, low, high, mask)), strict=True)
    expected = sum((policy_gradient_loss(name, *part, 0.3) for part in parts), policy.new_zeros(()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    own, plain = torch.autograd.grad(loss, policy, retain_graph=True), torch.autograd.grad(expected, policy)
    torch.testing.assert_close(own, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "cross_entropy"])
def test_nothing_of_a_masked_position_enters_the_sum(name: str) -> None:
    def of(junk: float) -> tuple[float, list[float]]:
        inputs = columns(logprobs=[-1.0, junk, -2.0], advantages=[1.0, 0.0, -1.0], sequence_ratio_mask=[1.0, 0.0, 1.0])
        return loss_and_gradient(name, [-1.2, -9.0, -2.2], inputs, beta=0.1)

    assert of(math.nan) == of(-math.inf) == of(0.0)
