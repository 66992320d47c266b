"""Training that has diverged: a loss, gradient, weight or logprob that isn't finite, and the likely cause in words."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from tandem.rl.errors import StepError
from tandem.rl.policy import Policy
from tandem.rl.probe import is_finite


@dataclass(frozen=True)
class StepNumbers:
    """The sums and settings of one gradient step that tell why it diverged."""

    learning_rate: float
    grad_norm: float
    loss: float
    num_tokens: int
    num_unknown: int
    """Trained tokens whose logprob under the policy isn't finite."""
    step: int
    """1 for the first of this training."""

    def check(self) -> None:
        """Raise StepError unless loss and gradient are finite."""
        if self.num_unknown:
            raise StepError(
                f"The policy's logprobs aren't finite at {self.num_unknown} of {self.num_tokens} trained tokens "
                f"({self}), because {self._destroyed_by()}"
            )
        if not (math.isfinite(self.grad_norm) and math.isfinite(self.loss)):
            raise StepError(
                f"The gradient or the loss of step {self.step} is not finite ({self}), so it was not applied. "
                "Importance ratios that overflow are the usual cause, after steps with a learning rate that is too "
                "high or with logprobs of another policy: lower learning_rate, lower epsilon_high or set "
                "max_negative_advantage_importance_sampling_weight, and check that logprobs and rewards are sane."
            )

    def _destroyed_by(self) -> str:
        if self.step == 1:
            return f"the version that training starts from is destroyed. {_DELETE}"
        return f"gradient step {self.step - 1} has destroyed the weights. {self.advice()}"

    def advice(self) -> str:
        return f"The learning rate is too high for these gradients: lower learning_rate ({self.learning_rate:g})."

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:g}, gradient norm {self.grad_norm:g}, loss {self.loss:g}"


_DELETE = "Delete it, so that training continues from the version before."


class TakenStep(Protocol):
    """The numbers of the last step, which tell why a state isn't finite."""

    @property
    def step(self) -> int: ...

    def advice(self) -> str: ...


def check_state(policy: Policy, tensors: Iterable[Tensor], last: TakenStep | None) -> list[float]:
    """Raise StepError unless the policy's weights, other `tensors` and its logprobs of the probe are finite.

    Return these logprobs. `last` is the last gradient step; None for a version as it was loaded.
    """
    cause = f"after step {last.step} ({last}). {last.advice()}" if last else f"in the loaded version. {_DELETE}"
    if name := next((name for name, weight in policy.parameters.items() if not all_finite(weight)), None):
        raise StepError(f"The policy's weight {name} isn't finite {cause}")
    if not all(all_finite(tensor) for tensor in tensors):
        raise StepError(f"The optimizer's state isn't finite {cause}")
    logprobs = policy.probe()
    if not is_finite(logprobs):
        largest = max(float(weight.detach().abs().max()) for weight in policy.parameters.values())
        raise StepError(f"The policy's logprobs aren't finite, with weights up to {largest:.3g}, {cause}")
    return logprobs


def all_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
