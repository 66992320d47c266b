"""The optimizer of an adapter: AdamW, and the gradients of all parameters in one vector.

The moments are float32, whatever the dtype of the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tandem.rl.checkpoints import LearnerState
from tandem.rl.errors import PolicyError
from tandem.rl.policy import Policy, check_tensors
from tandem.rl.settings import OptimizerSettings

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AdapterOptimizer:
    """Trains the parameters that a policy has, which `load` may exchange."""

    def __init__(self, policy: Policy, settings: OptimizerSettings) -> None:
        self._policy, self._settings = policy, settings
        self._take_parameters()

    def _take_parameters(self) -> None:
        """Train the parameters that the policy has now, with a new optimizer."""
        parameters = list(self._policy.parameters.values())
        self._adamw = torch.optim.AdamW(parameters, lr=0.0)
        self.gradient = _flat_gradient(parameters)
        """Every parameter's .grad is a view of it."""

    def load(self, state: LearnerState) -> bool:
        """Load adapter and moments, and return whether the policy's parameters are others now.

        Changes over to the state's LoRA settings if they are others. Raises PolicyError, and changes nothing, if the
        state doesn't fit the base model and LoRA settings.
        """
        parameters = self._policy.parameters
        restore = self._policy.use_lora(state.lora or self._policy.lora)
        try:
            check_tensors("adapter", self._shapes(), state.adapter)
            if state.optimizer:
                check_tensors("optimizer state", self._moment_shapes(), state.optimizer)
        except PolicyError:
            restore()
            raise
        are_others = self._policy.parameters is not parameters
        if are_others:
            self._take_parameters()
        self._policy.load_adapter_state(state.adapter)
        self._adamw.state.clear()
        for name, parameter in self._policy.parameters.items() if state.optimizer else ():
            moments = {key: state.optimizer[f"{name}.{key}"] for key in _MOMENTS}
            # AdamW counts steps on the CPU, wherever the parameter is.
            self._adamw.state[parameter] = {
                key: tensor.to("cpu" if key == "step" else parameter.device, copy=True)
                for key, tensor in moments.items()
            }
        return are_others

    def step(
        self,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] | None = None,
        eps: float | None = None,
    ) -> None:
        """Take a step with the gradient as it is. Betas and eps are those of the settings unless they are given."""
        for group in self._adamw.param_groups:
            group["lr"], group["weight_decay"] = learning_rate, weight_decay
            group["betas"] = self._settings.betas if betas is None else betas
            group["eps"] = self._settings.eps if eps is None else eps
        self._adamw.step()

    @property
    def num_steps(self) -> int:
        """Steps since the training's first one, also those before the state was loaded."""
        state = next(iter(self._adamw.state.values()), None)
        return int(state["step"]) if state else 0

    def gradient_norm(self) -> float:
        """Return the L2 norm, also where the squares of a finite gradient overflow float32."""
        norm = float(torch.linalg.vector_norm(self.gradient))
        return norm if math.isfinite(norm) else float(torch.linalg.vector_norm(self.gradient, dtype=torch.float64))

    def moments(self) -> Iterator[Tensor]:
        return (tensor for state in self._adamw.state.values() for tensor in state.values())

    def state(self, device: torch.device | str = "cpu") -> LearnerState:
        """Return a copy of adapter and moments on `device`."""
        return self._copied(lambda tensor: tensor.to(device, copy=True))

    def state_in_background(self) -> Callable[[], LearnerState]:
        """Begin to copy adapter and moments to the main memory. Return a function that waits for the copy.

        On CUDA the copies follow the last step on its own stream, so nothing can overwrite the weights before, and this
        process doesn't wait for them. A stream beside it would gain nothing: the next work loads other weights.
        """
        is_cuda = self._policy.device.type == "cuda"
        state = self._copied(_to_pinned_memory) if is_cuda else self.state()
        copied = torch.cuda.current_stream(self._policy.device).record_event() if is_cuda else None

        def wait() -> LearnerState:
            if copied is not None:
                copied.synchronize()
            return state

        return wait

    def _copied(self, copy: Callable[[Tensor], Tensor]) -> LearnerState:
        return LearnerState(
            adapter={name: copy(parameter.detach()) for name, parameter in self._policy.parameters.items()},
            optimizer={
                # AdamW counts steps on the CPU, wherever the parameter is.
                f"{name}.{key}": (torch.clone if key == "step" else copy)(self._adamw.state[parameter][key])
                for name, parameter in self._policy.parameters.items()
                if parameter in self._adamw.state
                for key in _MOMENTS
            },
            lora=self._policy.lora,
        )

    def _shapes(self) -> Mapping[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self._policy.parameters.items()}

    def _moment_shapes(self) -> Mapping[str, torch.Size]:
        scalar = torch.Size([])
        return {
            f"{name}.{key}": scalar if key == "step" else shape
            for name, shape in self._shapes().items()
            for key in _MOMENTS
        }


def _flat_gradient(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Return one zero vector with every parameter's .grad as a view, so that one all-reduce sums all gradients."""
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return flat


def _to_pinned_memory(tensor: Tensor) -> Tensor:
    """Return where a copy of a tensor on a GPU arrives, in memory that the GPU can write by itself."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
