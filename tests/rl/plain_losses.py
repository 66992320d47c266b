"""Datums with random numbers, and their losses in the plainest form: PEFT's model in float64, one datum after another,
position by position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import peft
import torch
from small_models import VOCABULARY
from torch import Tensor
from transformers import AutoModelForCausalLM

from tandem.rl.datums.datum import Datum
from tandem.rl.datums.losses import LOSSES
from tandem.rl.models.lora.adapter import peft_config
from tandem.rl.policy import Policy

OPTIONS: Mapping[str, Mapping[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.7, "clip_high_threshold": 1.25},
    "cispo": {"clip_high_threshold": 1.5},
    "dro": {"beta": 0.3},
    "gspo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1},
}


def call_datums(loss: str, prompt: int = 30, lengths: Sequence[int] = (9, 14, 1, 7), seed: int = 0) -> list[Datum]:
    """Return datums on one prompt, whose positions are masked, then one on its own and one that begins another one."""
    generator = torch.Generator().manual_seed(seed)

    def ids(number: int) -> Tensor:
        return torch.randint(0, VOCABULARY, (number,), generator=generator)

    shared = ids(prompt + 1)
    sequences = [torch.cat([shared, ids(length)]) for length in lengths]
    sequences += [ids(12), sequences[1][: prompt + 6]]
    datums = []
    for sequence in sequences:
        masked = prompt if len(sequence) > prompt else 2
        datums.append(Datum(sequence[:-1], sequence[1:], _values(loss, len(sequence) - 1, masked, generator)))
    return datums


def _values(loss: str, length: int, masked: int, generator: torch.Generator) -> dict[str, Tensor]:
    def normal() -> Tensor:
        return torch.randn(length, generator=generator)

    is_counted = (torch.arange(length) >= masked) & (normal() < 1)
    if loss == "cross_entropy":
        return {"weights": normal() * is_counted}
    values = {"logprobs": (normal() * 0.3 - 4).clamp(max=0), "advantages": normal() * is_counted}
    if loss == "gspo":
        values["sequence_ratio_mask"] = (torch.arange(length) >= masked).float()
    return values


class PlainModel:
    """transformers and PEFT alone, in float64, with a policy's adapter."""

    def __init__(self, path: Path, policy: Policy) -> None:
        base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
        self._model = peft.get_peft_model(base, peft_config(policy.lora))
        self.parameters = {
            name.replace(".default", ""): weight for name, weight in self._model.named_parameters() if "lora_" in name
        }
        for name, value in policy.adapter_state().items():
            self.parameters[name].data = value.double()

    def logprobs(self, datum: Datum) -> Tensor:
        """Return float64, like the targets."""
        every = self._model(datum.token_ids[None]).logits[0].log_softmax(-1)
        return every.gather(1, datum.targets.view(datum.num_tokens, -1)).view(datum.targets.shape)

    def gradient(self, datums: Sequence[Datum], loss: str, options: Mapping[str, float]) -> tuple[float, Tensor]:
        """Return the loss of a call, and its gradient by all parameters in one vector, in the order of their names."""
        total = torch.zeros((), dtype=torch.float64)
        for datum in datums:
            total = total + plain_loss(loss, self.logprobs(datum), datum, options)
        names = sorted(self.parameters)
        found = torch.autograd.grad(total, [self.parameters[name] for name in names])
        return total.item(), torch.cat([gradient.flatten() for gradient in found])


def plain_loss(loss: str, logprobs: Tensor, datum: Datum, options: Mapping[str, float]) -> Tensor:
    values = {name: value.double() for name, value in datum.values.items()}
    if loss == "cross_entropy":
        weights = values.get("weights", torch.ones_like(logprobs))
        cells = zip(logprobs.flatten(), weights.flatten(), strict=True)
        return -sum((w * p for p, w in cells if w != 0), logprobs.new_zeros(()))
    q, a = values["logprobs"], values["advantages"]
    mask = values.get("sequence_ratio_mask", torch.zeros_like(a))
    low = options.get("clip_low_threshold", 0.0 if loss == "cispo" else 0.8)
    high = options.get("clip_high_threshold", 4.0 if loss == "cispo" else 1.2)
    lows = values.get("clip_low_threshold", torch.full_like(a, low))
    highs = values.get("clip_high_threshold", torch.full_like(a, high))
    return policy_gradient_loss(loss, logprobs, q, a, lows, highs, mask, options.get("beta", 0.0))


def policy_gradient_loss(
    name: str, p: Tensor, q: Tensor, a: Tensor, low: Tensor, high: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """One datum, position by position."""
    total = p.new_zeros(())
    in_mask = [i for i in range(len(p)) if mask[i] != 0]
    mean = sum(((p[i].detach() - q[i]) for i in in_mask), p.new_zeros(())) / max(len(in_mask), 1)
    for i in range(len(p)):
        if a[i] == 0:
            continue
        ratio = torch.exp(p[i] - q[i])
        if name == "gspo":
            ratio = torch.exp(mean + p[i] - p[i].detach())
        clipped = torch.clamp(ratio, low[i], high[i])
        match name:
            case "importance_sampling":
                total = total - ratio * a[i]
            case "ppo" | "gspo":
                total = total - torch.minimum(ratio * a[i], clipped * a[i])
            case "cispo":
                total = total - clipped.detach() * p[i] * a[i]
            case "dro":
                total = total - (p[i] * a[i] - 0.5 * beta * (p[i] - q[i]) ** 2)
            case _:
                raise ValueError(name)
    return total


assert OPTIONS.keys() == LOSSES.keys()
