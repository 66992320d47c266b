"""The learner: gradients of a policy, summed over packed sequences and learners, and one optimizer step for all.

A gradient step is `forward_backward` on each learner's share of its packed sequences, then `optim_step` on all. Sums
of losses, gradients and counts are all-reduced and divided by the token count of the whole step, so that N learners
equal one learner that has accumulated the same sequences. Where torch.distributed has no process group, N is 1.

Base weights may be bfloat16; adapter weights, their gradients and AdamW's moments are float32 always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, auto

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, LossConfig
from tandem.rl.divergence import StepNumbers, check_state
from tandem.rl.errors import StepError
from tandem.rl.losses import (
    LossInputs,
    LossTerms,
    fresh_differences,
    kl_sum,
    mean_over_tokens,
    policy_loss,
    probability_correlation,
    probability_moments,
    shift_right,
)
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy, check_tensors
from tandem.rl.settings import OptimizerSettings
from tandem.rl.step_size import StepSize

__all__ = ["Learner", "StepError"]

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class _Sum(IntEnum):
    """Indices of the sums over a step's trained tokens, beside the gradient. The last six are probability moments."""

    TOKENS = 0
    SEQUENCES = auto()
    LOSS = auto()
    ENTROPY = auto()
    RATIO = auto()
    CLIPPED = auto()
    KL = auto()
    KL_TOKENS = auto()
    SAMPLED_DIFF = auto()
    SAMPLED_TOKENS = auto()
    UNKNOWN = auto()
    """Trained tokens whose logprob isn't finite."""
    MOMENTS = auto()

    @staticmethod
    def zeros(device: torch.device) -> Tensor:
        return torch.zeros(_Sum.MOMENTS + 6, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class SuspendedTraining:
    """A training between two of its gradient steps, on the policy's device."""

    state: LearnerState
    last_step: StepNumbers | None


class Learner:
    """One learner, alone or of a group. Every learner of a group makes the same calls in the same order.

        learner.load_state(state)
        for share in my_shares_of_the_steps:
            metrics = learner.step(share, loss, learning_rate)
        state = learner.state()

    Between two steps, `suspend` and `resume` let another training take the learner. Neither changes the other's result.

    `rl.steps` has the loop of a whole training job.
    """

    step_size = StepSize(rows=1)
    """Of a learner alone."""

    def __init__(self, policy: Policy, optimizer: OptimizerSettings | None = None) -> None:
        self.policy = policy
        self._settings = optimizer or OptimizerSettings()
        parameters = list(policy.parameters.values())
        self._optimizer = torch.optim.AdamW(
            parameters,
            lr=0.0,
            betas=self._settings.betas,
            eps=self._settings.eps,
            weight_decay=self._settings.weight_decay,
        )
        self._gradient = _flat_gradient(parameters)
        self._sums = _Sum.zeros(policy.device)
        self._sampled_diff_max = torch.zeros((), dtype=torch.float64, device=policy.device)
        self._last_step: StepNumbers | None = None  # since `begin`

    def load_state(self, state: LearnerState) -> None:
        """Load a policy version: its adapter and optimizer state. Accumulated gradients are discarded.

        Raises PolicyError, and changes nothing, if the state doesn't fit the base model and LoRA settings.
        """
        check_tensors("adapter", self._shapes(), state.adapter)
        if state.optimizer:
            check_tensors("optimizer state", self._optimizer_shapes(), state.optimizer)
        self.policy.load_adapter_state(state.adapter)
        self._optimizer.state.clear()
        for name, parameter in self.policy.parameters.items() if state.optimizer else ():
            moments = {key: state.optimizer[f"{name}.{key}"] for key in _MOMENTS}
            # AdamW counts steps on the CPU, wherever the parameter is.
            self._optimizer.state[parameter] = {
                key: tensor.to("cpu" if key == "step" else parameter.device, copy=True)
                for key, tensor in moments.items()
            }
        self.begin()

    def begin(self) -> None:
        """Begin another training from the current version. Accumulated gradients are discarded."""
        self._last_step = None
        self._discard()

    def check_finite(self) -> list[float]:
        """Raise StepError unless the current version can be used: its weights, moments and logprobs are finite.

        Return its logprobs of the probe.
        """
        moments = (tensor for state in self._optimizer.state.values() for tensor in state.values())
        return check_state(self.policy, moments, self._last_step)

    def state(self, device: torch.device | str = "cpu") -> LearnerState:
        """Return a copy of the current version on `device`."""
        return LearnerState(
            adapter={
                name: parameter.detach().to(device, copy=True) for name, parameter in self.policy.parameters.items()
            },
            optimizer={
                # AdamW counts steps on the CPU, wherever the parameter is.
                f"{name}.{key}": self._optimizer.state[parameter][key].to("cpu" if key == "step" else device, copy=True)
                for name, parameter in self.policy.parameters.items()
                if parameter in self._optimizer.state
                for key in _MOMENTS
            },
        )

    def suspend(self) -> SuspendedTraining:
        """Return a copy of the training, to be resumed after another one. Call it between two steps."""
        return SuspendedTraining(self.state(self.policy.device), self._last_step)

    def resume(self, training: SuspendedTraining) -> None:
        """Continue a training where it was suspended."""
        self.load_state(training.state)
        self._last_step = training.last_step

    def step(
        self,
        sequences: Sequence[PackedSequence],
        loss: LossConfig,
        learning_rate: float,
        logprob_chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> dict[str, float]:
        """Take one gradient step: `forward_backward` over this learner's share of it, then `optim_step`."""
        self.forward_backward(sequences, loss, logprob_chunk_size)
        return self.optim_step(learning_rate)

    def forward_backward(
        self,
        sequences: Sequence[PackedSequence],
        loss: LossConfig,
        logprob_chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> None:
        """Add the gradients and sums of `sequences` (this learner's share, possibly none) to those of the step.

        A step may take several calls. With a KL penalty it must be one call on every learner, because the penalty uses
        the mean KL of the whole step.
        """
        kl_mean = self._step_kl_mean(sequences, loss, logprob_chunk_size) if loss.kl_coef > 0 else None
        num_idle = self.policy.idle_passes(len(sequences))
        for sequence in sequences:  # one by one, so that a step may have any number of rows
            packed = sequence.to(self.policy.device)
            logprobs, entropy = self.policy.logprobs(packed, logprob_chunk_size, with_entropy=True, trained_only=True)
            inputs = LossInputs.from_packed(packed, logprobs, entropy)
            terms = policy_loss(inputs, loss, kl_mean)
            terms.loss_sum.backward()
            self._sums += _sequence_sums(inputs, terms)
            self._watch_sampling(fresh_differences(inputs))
        for _ in range(num_idle):
            self.policy.idle_pass()

    def optim_step(self, learning_rate: float) -> dict[str, float]:
        """Finish the gradient step, equally on every learner, and return its metrics, all finite.

        A step without trained tokens changes neither policy nor optimizer. Raises StepError if loss or gradient isn't
        finite; the policy is then unchanged and the gradient discarded. `check_finite` checks the policy afterwards.
        """
        if dist.is_initialized():
            dist.all_reduce(self._gradient)
            dist.all_reduce(self._sums)
            dist.all_reduce(self._sampled_diff_max, op=dist.ReduceOp.MAX)
        sums = self._sums.tolist()
        self._gradient /= sums[_Sum.TOKENS] + 1e-6
        grad_norm = _norm(self._gradient)
        loss = mean_over_tokens(sums[_Sum.LOSS], sums[_Sum.TOKENS])
        step = self._last_step.step + 1 if self._last_step else 1
        numbers = StepNumbers(learning_rate, grad_norm, loss, int(sums[_Sum.TOKENS]), int(sums[_Sum.UNKNOWN]), step)
        try:
            numbers.check()
        except StepError:
            self._discard()
            raise
        if sums[_Sum.TOKENS] > 0:
            self._gradient *= min(1.0, self._settings.max_grad_norm / (grad_norm + 1e-6))
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
            self._last_step = numbers
        metrics = _step_metrics(sums, grad_norm, learning_rate)
        if sums[_Sum.SAMPLED_TOKENS] > 0:
            metrics["logprobs/sampled_current_abs_diff_mean"] = sums[_Sum.SAMPLED_DIFF] / sums[_Sum.SAMPLED_TOKENS]
            metrics["logprobs/sampled_current_abs_diff_max"] = float(self._sampled_diff_max)
        self._discard()
        return metrics

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[PackedSequence],
        chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
        adapter: Mapping[str, Tensor] | None = None,
    ) -> list[Tensor]:
        """Return token-aligned float32 logprobs [T] of each packed sequence under the loaded version, on the CPU.

        NaN at the first token of each segment, which has no prediction (and is never trained). `adapter` is that of
        another version to score under; the one in training is put back afterwards.
        """
        own = None if adapter is None else self.policy.adapter_state()
        try:
            if adapter is not None:
                self.policy.load_adapter_state(adapter)
            num_idle = self.policy.idle_passes(len(sequences))
            scores = [shift_right(self.policy.logprobs(row, chunk_size)[0], float("nan")).cpu() for row in sequences]
            for _ in range(num_idle):
                self.policy.idle_pass()
            return scores
        finally:
            if own is not None:
                self.policy.load_adapter_state(own)

    def _step_kl_mean(self, sequences: Sequence[PackedSequence], loss: LossConfig, chunk_size: int) -> Tensor | None:
        """Return the mean KL over the trained tokens of the step, over all learners; None if the step is one sequence.

        The losses need it beforehand, which costs a second forward pass without gradient if the KL is that of the
        current policy.
        """
        if self._sums[_Sum.SEQUENCES] > 0:
            raise ValueError("With a KL penalty, pass all packed sequences of a gradient step to one forward_backward.")
        for packed in sequences:
            if packed.ref_logprobs is None or packed.ref_logprobs[packed.is_trained].isnan().any():
                raise ValueError("With a KL penalty, every trained token needs a reference logprob (ref_logprobs).")
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if world_size == 1 and len(sequences) == 1:
            return None
        total = torch.zeros(2, dtype=torch.float64, device=self.policy.device)
        num_idle = self.policy.idle_passes(sum(_kl_needs_policy(packed, loss) for packed in sequences))
        for packed in sequences:
            total[0] += kl_sum(self._kl_inputs(packed.to(self.policy.device), loss, chunk_size), loss)
            total[1] += packed.num_trained_tokens
        with torch.no_grad():
            for _ in range(num_idle):
                self.policy.idle_pass()
        if world_size > 1:
            dist.all_reduce(total)
        return mean_over_tokens(total[0], total[1]).float()

    @torch.no_grad()
    def _kl_inputs(self, packed: PackedSequence, loss: LossConfig, chunk_size: int) -> LossInputs:
        """Return the loss inputs of `packed`, with the policy's logprobs only if the KL depends on them."""
        if not _kl_needs_policy(packed, loss):
            return _inputs_without_policy(packed)
        logprobs, _ = self.policy.logprobs(packed, chunk_size, trained_only=True)
        return LossInputs.from_packed(packed, logprobs)

    def _watch_sampling(self, differences: Tensor) -> None:
        """Record the differences [F] between sampling and current logprobs, which measure the engine's error."""
        if differences.numel():
            self._sums[_Sum.SAMPLED_DIFF] += differences.sum()
            self._sums[_Sum.SAMPLED_TOKENS] += differences.numel()
            self._sampled_diff_max.copy_(torch.maximum(self._sampled_diff_max, differences.max()))

    def _discard(self) -> None:
        self._gradient.zero_()
        self._sums.zero_()
        self._sampled_diff_max.zero_()

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: parameter.shape for name, parameter in self.policy.parameters.items()}

    def _optimizer_shapes(self) -> dict[str, torch.Size]:
        scalar = torch.Size([])
        return {
            f"{name}.{key}": scalar if key == "step" else shape
            for name, shape in self._shapes().items()
            for key in _MOMENTS
        }


def _kl_needs_policy(packed: PackedSequence, loss: LossConfig) -> bool:
    """Return whether the KL of a row is that of the current policy, at least where nothing else is known."""
    if loss.kl_source != "sample":
        return True
    return bool(_inputs_without_policy(packed).trained().behaviour_logprobs().isnan().any())


def _inputs_without_policy(packed: PackedSequence) -> LossInputs:
    return LossInputs.from_packed(packed, torch.full_like(packed.sampling_logprobs, float("nan")))


def _flat_gradient(parameters: Sequence[torch.nn.Parameter]) -> Tensor:
    """Return one zero vector with every parameter's .grad as a view, so that one all-reduce sums all gradients."""
    flat = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = piece.view_as(parameter)
    return flat


def _norm(gradient: Tensor) -> float:
    """Return the L2 norm, also where the squares of a finite gradient overflow float32."""
    norm = float(torch.linalg.vector_norm(gradient))
    return norm if math.isfinite(norm) else float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def _sequence_sums(inputs: LossInputs, terms: LossTerms) -> Tensor:
    """Return the sums of one packed sequence, in the order of _Sum."""
    assert inputs.entropy is not None, "it is a metric of every step"
    sums = _Sum.zeros(inputs.entropy.device)
    sums[_Sum.TOKENS] = terms.num_tokens
    sums[_Sum.SEQUENCES] = 1
    sums[_Sum.LOSS] = terms.loss_sum.detach()
    sums[_Sum.ENTROPY] = (inputs.entropy * inputs.weights)[inputs.loss_mask].sum()
    sums[_Sum.RATIO] = terms.ratio_sum
    sums[_Sum.CLIPPED] = terms.num_clipped
    sums[_Sum.UNKNOWN] = (~inputs.policy_logprobs.detach()[inputs.loss_mask].isfinite()).sum()
    if terms.kl_sum is not None:
        sums[_Sum.KL] = terms.kl_sum
        sums[_Sum.KL_TOKENS] = terms.num_tokens
    sums[_Sum.MOMENTS :] = probability_moments(inputs)
    return sums


def _step_metrics(sums: Sequence[float], grad_norm: float, learning_rate: float) -> dict[str, float]:
    """Return means over the step's trained tokens. loss/entropy is weighted like the loss."""
    tokens = sums[_Sum.TOKENS]
    metrics: dict[str, float] = {
        "loss/train": mean_over_tokens(sums[_Sum.LOSS], tokens),
        "loss/grad_norm": grad_norm,
        "loss/learning_rate": learning_rate,
        "data/step_trainer_tokens": tokens,
        "data/step_num_sequences": sums[_Sum.SEQUENCES],
    }
    if tokens > 0:
        metrics["loss/entropy"] = mean_over_tokens(sums[_Sum.ENTROPY], tokens)
        metrics["loss/ratio_mean"] = sums[_Sum.RATIO] / tokens
        metrics["loss/clip_fraction"] = sums[_Sum.CLIPPED] / tokens
    if sums[_Sum.KL_TOKENS] > 0:
        metrics["loss/kl_policy_ref"] = mean_over_tokens(sums[_Sum.KL], sums[_Sum.KL_TOKENS])
    correlation = probability_correlation(torch.tensor(sums[_Sum.MOMENTS :], dtype=torch.float64))
    if correlation is not None:
        metrics["loss/probs_corr"] = correlation
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
