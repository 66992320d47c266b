"""The learner: gradients of a policy, summed over packed sequences and learners, and one optimizer step for all.

A gradient step is `forward_backward` on each learner's share of its packed sequences, then `optim_step` on all. Sums
of losses, gradients and counts are all-reduced and divided by the token count of the whole step, so that N learners
equal one learner that has accumulated the same sequences. Where torch.distributed has no process group, N is 1.

Base weights may be bfloat16; adapter weights, their gradients and AdamW's moments are float32 always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, Dpo, LossConfig, Objective
from tandem.rl.datums.rows import DatumRow
from tandem.rl.datums.training import AdamNumbers, DatumOutputs, DatumTraining
from tandem.rl.errors import OutOfMemoryError, StepError
from tandem.rl.gradient_step.adapter_optimizer import AdapterOptimizer
from tandem.rl.gradient_step.divergence import StepNumbers, check_state
from tandem.rl.gradient_step.metrics import StepSum, sequence_sums, step_metrics
from tandem.rl.gradient_step.out_of_memory import free_memory, is_out_of_memory, numbers_of
from tandem.rl.gradient_step.progress import UPDATE, Progress
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.losses import (
    LossInputs,
    fresh_differences,
    kl_sum,
    loss_terms,
    mean_over_tokens,
    pair_metrics,
    pair_sums,
    shift_right,
)
from tandem.rl.packing import PackedSequence, one_segment
from tandem.rl.policy import Policy
from tandem.rl.settings import AdamStep, LoraSettings, OptimizerSettings, UpdateRule
from tandem.rl.traces.recording import StepRecorder

__all__ = ["Learner", "StepError"]

T = TypeVar("T")


@dataclass(frozen=True)
class SuspendedTraining:
    """A training between two of its gradient steps or calls, on the policy's device."""

    state: LearnerState
    last_step: StepNumbers | AdamNumbers | None
    gradient: Tensor | None = None
    """What calls have accumulated; None if there is nothing."""


class Learner:
    """One learner, alone or of a group. Every learner of a group makes the same calls in the same order.

        learner.load_state(state)
        for share in my_shares_of_the_steps:
            metrics = learner.step(share, loss, learning_rate)
        state = learner.state()

    Training loops of others use `accumulate` and `apply_adam` instead (`rl.datums.training`).

    Between two steps, `suspend` and `resume` let another training take the learner. Neither changes the other's result.

    Where the memory of one learner doesn't suffice for its share of a step, `optim_step` raises OutOfMemoryError on
    all of them, and they can take other steps (`rl.gradient_step.out_of_memory` repeats the step with shorter rows).

    `rl.steps` has the loop of a whole training job.
    """

    step_size = StepSize(rows=1)
    """Of a learner alone."""

    def __init__(self, policy: Policy, optimizer: OptimizerSettings | None = None) -> None:
        self.policy = policy
        self._settings = optimizer or OptimizerSettings()
        self._optimizer = AdapterOptimizer(policy, self._settings)
        self._sums = StepSum.zeros(policy.device)
        self._sampled_diff_max = torch.zeros((), dtype=torch.float64, device=policy.device)
        self._router_margins = policy.router_margins
        self._last_step: StepNumbers | AdamNumbers | None = None  # since `begin`
        self._shortage: OutOfMemoryError | None = None  # of memory, in the current step
        self._pair_metrics: dict[str, float] = {}  # of the current step
        self._recorder = StepRecorder()
        self.progress = Progress()
        self._datums = DatumTraining(policy, self._optimizer, self.progress)
        self.trace = self._recorder.take()
        """This learner's share of the traced tokens of the last step that succeeded."""

    def load_state(self, state: LearnerState) -> None:
        """Load a policy version: its adapter and optimizer state. Accumulated gradients are discarded.

        Changes over to the state's LoRA settings if they are others. Raises PolicyError, and changes nothing, if the
        state doesn't fit the base model and LoRA settings.
        """
        if self._optimizer.load(state) and self.policy.compiles:
            self.progress.restart()  # kernels for other ranks
        self.begin()

    def begin(self) -> None:
        """Begin another training from the current version. Accumulated gradients are discarded."""
        self._last_step = None
        self._discard()

    def warm_up(self, num_tokens: int) -> None:
        """Score and differentiate a row of this length, so that kernels are compiled and memory is allocated before the
        first job. Nothing else changes: call it before `load_state`."""
        if not self.policy.compiles:
            return
        ids = torch.tensor(self.policy.probe_token_ids)
        row = one_segment(ids.repeat(-(-num_tokens // len(ids)))[:num_tokens])
        row = replace(
            row, loss_mask=row.positions > 0, advantages=torch.ones(num_tokens), weights=torch.ones(num_tokens)
        )
        self.score([row])
        self.forward_backward([row], LossConfig())
        self._discard()

    def check_finite(self) -> list[float]:
        """Raise StepError unless the current version can be used: its weights, moments and logprobs are finite.

        Return its logprobs of the probe.
        """
        return check_state(self.policy, self._optimizer.moments(), self._last_step)

    def state(self, device: torch.device | str = "cpu") -> LearnerState:
        """Return a copy of the current version on `device`."""
        return self._optimizer.state(device)

    def state_in_background(self) -> Callable[[], LearnerState]:
        """Begin to copy the current version to the main memory. Return a function that waits for the copy."""
        return self._optimizer.state_in_background()

    def suspend(self) -> SuspendedTraining:
        """Return a copy of the training, to be resumed after another one. Call it between two steps or calls."""
        return SuspendedTraining(self.state(self.policy.device), self._last_step, self._datums.kept())

    def resume(self, training: SuspendedTraining) -> None:
        """Continue a training where it was suspended."""
        self.load_state(training.state)
        self._last_step = training.last_step
        self._datums.put_back(training.gradient)

    def accumulate(
        self,
        rows: Sequence[DatumRow],
        loss: str,
        options: Mapping[str, float],
        forward_only: bool = False,
        chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> DatumOutputs:
        """Add the gradient of datums, this learner's share of a call, as `DatumTraining.accumulate` does."""
        return self._datums.accumulate(rows, loss, options, forward_only, chunk_size)

    def apply_adam(self, step: AdamStep) -> dict[str, float]:
        """Take an AdamW step with what all learners have accumulated, as `DatumTraining.apply` does."""
        metrics, self._last_step = self._datums.apply(step)
        return metrics

    @property
    def has_gradient(self) -> bool:
        """Whether datums have been accumulated since the last step; the same on every learner."""
        return self._datums.has_gradient

    def discard_gradient(self) -> None:
        """Forget what datums have accumulated."""
        self._datums.discard()

    def step(
        self,
        sequences: Sequence[PackedSequence],
        loss: Objective,
        learning_rate: float,
        logprob_chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> dict[str, float]:
        """Take one gradient step: `forward_backward` over this learner's share of it, then `optim_step`."""
        self.forward_backward(sequences, loss, logprob_chunk_size)
        return self.optim_step(learning_rate, loss.update)

    def forward_backward(
        self,
        sequences: Sequence[PackedSequence],
        loss: Objective,
        logprob_chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> None:
        """Add the gradients and sums of `sequences` (this learner's share, possibly none) to those of the step.

        A step may take several calls. With a KL penalty or preference pairs it must be one call on every learner,
        because they need numbers of the whole step.
        """
        of_step = None
        if isinstance(loss, LossConfig) and loss.kl_coef > 0:
            self._check_reference(sequences, "a KL penalty")
            of_step = self._step_kl_mean(sequences, loss, logprob_chunk_size)
        if isinstance(loss, Dpo):
            self._check_reference(sequences, "preference pairs")
            of_step = self._step_pairs(sequences, loss, logprob_chunk_size)
            self._pair_metrics = pair_metrics(of_step, loss)
        self._within_memory(lambda: self._accumulate(sequences, loss, logprob_chunk_size, of_step), logprob_chunk_size)

    def _accumulate(
        self, sequences: Sequence[PackedSequence], loss: Objective, chunk_size: int, of_step: Tensor | None
    ) -> None:
        num_idle = self.policy.idle_passes(len(sequences))
        for row in self.progress.over(sequences, "forward and backward"):
            packed = row.to(self.policy.device)
            logprobs, entropy = self.policy.logprobs(packed, chunk_size, with_entropy=True, trained_only=True)
            inputs = LossInputs.from_packed(packed, logprobs, entropy)
            terms = loss_terms(inputs, loss, of_step)
            terms.loss_sum.backward()
            self._sums += sequence_sums(inputs, terms)
            self._watch_sampling(fresh_differences(inputs))
            self._recorder.add(row, logprobs)
        self._idle(num_idle)

    def _idle(self, num_passes: int) -> None:
        """Run the model in step with learners that share its weights and have more rows."""
        for _ in range(num_passes):
            self.progress.enter("a pass without a row")
            self.policy.idle_pass()

    def _within_memory(self, work: Callable[[], T], chunk_size: int) -> T | None:
        """Return what `work` returns; None if the memory doesn't suffice, or hasn't sufficed earlier in this step.

        Every learner reaches the collectives of the step all the same, where the others learn of it. Learners that
        share weights can't: they wait for this one in the middle of a row, so OutOfMemoryError is raised at once.
        """
        if self._shortage is not None:
            return None
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._shortage = OutOfMemoryError(numbers_of(error), self.progress.position.row_tokens, chunk_size)
        free_memory()
        if self.policy.shards:
            raise self._shortage
        return None

    def optim_step(self, learning_rate: float, update: UpdateRule | None = None) -> dict[str, float]:
        """Finish the gradient step, equally on every learner, and return its metrics, all finite.

        `update` has settings that replace the learner's own in this step.
        A step without trained tokens changes neither policy nor optimizer. Raises StepError if loss or gradient isn't
        finite, and OutOfMemoryError; the policy is then unchanged and the gradient discarded. `check_finite` checks the
        policy afterwards.
        """
        self.progress.enter(UPDATE)
        self._sums[StepSum.OUT_OF_MEMORY] = float(self._shortage is not None)
        if dist.is_initialized():
            dist.all_reduce(self._sums)
        sums = self._sums.tolist()
        if sums[StepSum.OUT_OF_MEMORY] > 0:
            shortage = self._shortage or _shortage_of_another()
            self._discard()
            raise shortage
        if dist.is_initialized():
            dist.all_reduce(self._optimizer.gradient)
            dist.all_reduce(self._sampled_diff_max, op=dist.ReduceOp.MAX)
            if self._router_margins.num_routers:
                dist.all_reduce(self._router_margins.counts)
        self._optimizer.gradient /= sums[StepSum.TOKENS] + 1e-6
        grad_norm = self._optimizer.gradient_norm()
        tokens, unknown = sums[StepSum.TOKENS], sums[StepSum.UNKNOWN]
        loss = mean_over_tokens(sums[StepSum.LOSS], tokens)
        step = self._last_step.step + 1 if self._last_step else 1
        numbers = StepNumbers(learning_rate, grad_norm, loss, int(tokens), int(unknown), step)
        try:
            numbers.check()
        except StepError:
            self._discard()
            raise
        if tokens > 0:
            rule: UpdateRule | OptimizerSettings = update or self._settings
            self._optimizer.gradient *= min(1.0, rule.max_grad_norm / (grad_norm + 1e-6))
            self._optimizer.step(learning_rate, rule.weight_decay)
            self._last_step = numbers
        metrics = step_metrics(sums, grad_norm, learning_rate) | self._pair_metrics
        if (sampled := sums[StepSum.SAMPLED_TOKENS]) > 0:
            metrics["logprobs/sampled_current_abs_diff_mean"] = sums[StepSum.SAMPLED_DIFF] / sampled
            metrics["logprobs/sampled_current_abs_diff_max"] = float(self._sampled_diff_max)
        near_ties, choices = self._router_margins.counts.tolist()
        if choices:
            metrics["routing/near_tie_fraction"] = near_ties / choices
        self.trace = self._recorder.take()
        self._discard()
        return metrics

    @torch.no_grad()
    def score(
        self,
        sequences: Sequence[PackedSequence],
        chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
        adapter: Mapping[str, Tensor] | None = None,
        lora: LoraSettings | None = None,
    ) -> list[Tensor]:
        """Return token-aligned float32 logprobs [T] of each packed sequence under the loaded version, on the CPU.

        NaN at the first token of each segment, which has no prediction (and is never trained). `adapter` is that of
        another version to score under, with its settings if they are others; the one in training is put back
        afterwards. Raises OutOfMemoryError.
        """

        def scored() -> list[Tensor]:
            num_idle = self.policy.idle_passes(len(sequences))
            rows = self.progress.over(sequences, "scoring")
            found = [shift_right(self.policy.logprobs(row, chunk_size)[0], float("nan")).cpu() for row in rows]
            self._idle(num_idle)
            return found

        try:
            with self._under(adapter, lora or self.policy.lora):
                found = self._within_memory(scored, chunk_size)
        finally:
            self.progress.enter("")
        shortage, self._shortage = self._shortage, None
        if found is None:
            assert shortage is not None, "scoring happens between two steps"
            raise shortage
        return found

    @contextmanager
    def _under(self, adapter: Mapping[str, Tensor] | None, lora: LoraSettings) -> Iterator[None]:
        """Have the policy another version's adapter in the block."""
        if adapter is None:
            yield
            return
        # An adapter with other settings takes the place of the own one, whose weights stay as they are.
        own = self.policy.adapter_state() if lora.fits(self.policy.lora) else None
        restore = self.policy.use_lora(lora)
        try:
            self.policy.load_adapter_state(adapter)
            yield
        finally:
            restore()
            if own is not None:
                self.policy.load_adapter_state(own)

    def _check_reference(self, sequences: Sequence[PackedSequence], what: str) -> None:
        if self._sums[StepSum.SEQUENCES] > 0:
            raise ValueError(f"With {what}, pass all packed sequences of a gradient step to one forward_backward.")
        for packed in sequences:
            if packed.ref_logprobs is None or packed.ref_logprobs[packed.is_trained].isnan().any():
                raise ValueError(f"With {what}, every trained token needs a reference logprob (ref_logprobs).")

    def _step_kl_mean(self, sequences: Sequence[PackedSequence], loss: LossConfig, chunk_size: int) -> Tensor | None:
        """Return the mean KL over the trained tokens of the step, over all learners; None if the step is one sequence.

        The losses need it beforehand, which costs a second forward pass without gradient if the KL is that of the
        current policy.
        """
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if world_size == 1 and len(sequences) == 1:
            return None
        total = torch.zeros(3, dtype=torch.float64, device=self.policy.device)

        @torch.no_grad()
        def add() -> None:
            num_idle = self.policy.idle_passes(sum(_kl_needs_policy(packed, loss) for packed in sequences))
            for row in self.progress.over(sequences, "the mean KL"):
                packed = row.to(self.policy.device)
                total[0] += kl_sum(self._kl_inputs(packed, loss, chunk_size), loss)
                total[1] += packed.num_trained_tokens
            self._idle(num_idle)

        self._within_memory(add, chunk_size)
        if world_size > 1:
            self.progress.enter("the mean KL of all learners")
            total[2] = float(self._shortage is not None)
            dist.all_reduce(total)
            if total[2] > 0:
                self._shortage = self._shortage or _shortage_of_another()
        return mean_over_tokens(total[0], total[1]).float()

    def _step_pairs(self, sequences: Sequence[PackedSequence], loss: Dpo, chunk_size: int) -> Tensor:
        """Return `pair_sums` [3, P] of the whole step, over all learners, for a second forward pass without gradient.

        So the answers of a pair may lie in any rows, and rows that don't fit into memory may be split.
        """
        total = torch.zeros(3 * loss.num_pairs + 1, dtype=torch.float64, device=self.policy.device)

        @torch.no_grad()
        def add() -> None:
            num_idle = self.policy.idle_passes(len(sequences))
            for row in self.progress.over(sequences, "the margins of pairs"):
                packed = row.to(self.policy.device)
                logprobs, _ = self.policy.logprobs(packed, chunk_size, trained_only=True)
                total[:-1] += pair_sums(LossInputs.from_packed(packed, logprobs), loss).flatten()
            self._idle(num_idle)

        self._within_memory(add, chunk_size)
        if dist.is_initialized() and dist.get_world_size() > 1:
            self.progress.enter("the margins of all learners' pairs")
            total[-1] = float(self._shortage is not None)
            dist.all_reduce(total)
            if total[-1] > 0:
                self._shortage = self._shortage or _shortage_of_another()
        return total[:-1].view(3, loss.num_pairs)

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
            self._sums[StepSum.SAMPLED_DIFF] += differences.sum()
            self._sums[StepSum.SAMPLED_TOKENS] += differences.numel()
            self._sampled_diff_max.copy_(torch.maximum(self._sampled_diff_max, differences.max()))

    def _discard(self) -> None:
        self._datums.discard()
        self._shortage = None
        self._pair_metrics = {}
        self._recorder.clear()
        self._sums.zero_()
        self._sampled_diff_max.zero_()
        self._router_margins.counts.zero_()


def _shortage_of_another() -> OutOfMemoryError:
    return OutOfMemoryError("another learner's memory was full")


def _kl_needs_policy(packed: PackedSequence, loss: LossConfig) -> bool:
    """Return whether the KL of a row is that of the current policy, at least where nothing else is known."""
    if loss.kl_source != "sample":
        return True
    return bool(_inputs_without_policy(packed).trained().behaviour_logprobs().isnan().any())


def _inputs_without_policy(packed: PackedSequence) -> LossInputs:
    return LossInputs.from_packed(packed, torch.full_like(packed.sampling_logprobs, float("nan")))
