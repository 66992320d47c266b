"""Gradients of datums, summed over any number of calls, and AdamW steps with the numbers of each step.

    outputs = training.accumulate(rows, "cross_entropy", {})     # any number of times, with any losses
    metrics = training.apply(AdamStep(learning_rate=1e-4))

Sums aren't divided by anything. Each learner of a group has its share of the rows of a call, and `apply` sums the
gradients of all, so that N learners equal one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE
from tandem.rl.datums.datum import DatumError
from tandem.rl.datums.losses import LOSSES, Columns, LossKind
from tandem.rl.datums.rows import DatumRow, moved, split_datums
from tandem.rl.errors import OutOfMemoryError, StepError
from tandem.rl.gradient_step.adapter_optimizer import AdapterOptimizer
from tandem.rl.gradient_step.out_of_memory import LEAST_CHUNK_SIZE, RowLimit, free_memory, is_out_of_memory, numbers_of
from tandem.rl.gradient_step.progress import UPDATE, Progress
from tandem.rl.policy import Policy
from tandem.rl.settings import AdamStep


@dataclass(frozen=True)
class DatumOutputs:
    """Of the datums of one learner's share of a call."""

    logprobs: Mapping[int, Tensor]
    """By the datum's index in the call: float32 [N] or [N, K], on the CPU, of every target."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """"loss", and what else the loss counts. Empty without datums."""

    @classmethod
    def joined(cls, shares: Iterable[DatumOutputs]) -> DatumOutputs:
        """Return the outputs of a whole call."""
        logprobs: dict[int, Tensor] = {}
        sums: dict[str, float] = {}
        for share in shares:
            logprobs |= share.logprobs
            for name, value in share.sums.items():
                sums[name] = sums.get(name, 0.0) + value
        return cls(dict(sorted(logprobs.items())), sums)


@dataclass(frozen=True)
class AdamNumbers:
    """One optimizer step, for the message of a state that isn't finite after it."""

    learning_rate: float
    grad_norm: float
    step: int
    """1 for the first of this training."""

    def advice(self) -> str:
        return f"The learning rate is too high for these gradients: lower learning_rate ({self.learning_rate:g})."

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:g}, gradient norm {self.grad_norm:g}"


class DatumTraining:
    """The part of a learner that trains datums."""

    def __init__(self, policy: Policy, optimizer: AdapterOptimizer, progress: Progress) -> None:
        self._policy, self._optimizer, self._progress = policy, optimizer, progress
        self._limits = {False: RowLimit(), True: RowLimit()}
        """Of the rows that fit, with the gradient and without."""
        self.has_gradient = False
        """Whether a call has added to the gradient since it was last used or discarded; the same on every learner."""

    def accumulate(
        self,
        rows: Sequence[DatumRow],
        loss: str,
        options: Mapping[str, float],
        forward_only: bool = False,
        chunk_size: int = DEFAULT_LOGPROB_CHUNK_SIZE,
    ) -> DatumOutputs:
        """Add the gradient of rows to that of the calls before, unless `forward_only`, and return their outputs.

        After an exception, the gradient is as before. Rows that don't fit into memory are split and computed again.
        Raises DatumError, which names the datum, if a single one doesn't fit; OutOfMemoryError for rows on learners
        that share weights, because these can't split theirs alone.
        """
        kind, limit = LOSSES[loss], self._limits[forward_only]
        before = self._optimizer.gradient.clone() if self.has_gradient and not forward_only else None
        while True:
            fitting = [piece for row in rows for piece in self._pieces(row, limit)]
            try:
                outputs = self._pass(fitting, kind, options, forward_only, limit.chunk(chunk_size))
                self.has_gradient |= not forward_only
                return outputs
            except Exception as error:
                self._restore(before, forward_only)
                if not is_out_of_memory(error):
                    raise
                at = self._progress.position
                shortage = OutOfMemoryError(numbers_of(error), at.row_tokens, limit.chunk(chunk_size))
            finally:
                self._progress.enter("")
            free_memory()
            if self._policy.shards:
                raise shortage
            _shrink(limit, shortage, fitting[at.row])

    def _pieces(self, row: DatumRow, limit: RowLimit) -> list[DatumRow]:
        if limit.row_tokens is None:
            return [row]
        return split_datums(row, limit.row_tokens, self._policy.shares_prefixes)

    def _restore(self, before: Tensor | None, forward_only: bool) -> None:
        if before is not None:
            self._optimizer.gradient.copy_(before)
        elif not forward_only:
            self._optimizer.gradient.zero_()

    def _pass(
        self, rows: Sequence[DatumRow], kind: LossKind, options: Mapping[str, float], forward_only: bool, chunk: int
    ) -> DatumOutputs:
        found: list[Tensor] = []
        sums: dict[str, Tensor] = {}
        with torch.no_grad() if forward_only else nullcontext():
            num_idle = self._policy.idle_passes(len(rows))
            work = "forward" if forward_only else "forward and backward"
            for _, row in zip(self._progress.over([row.row for row in rows], work), rows, strict=True):
                logprobs, own = self._row(moved(row, self._policy.device), kind, options, chunk)
                found.append(logprobs)
                for name, value in own.items():
                    sums[name] = sums[name] + value if name in sums else value
            for _ in range(num_idle):
                self._progress.enter("a pass without a row")
                self._policy.idle_pass()
        return DatumOutputs(_by_datum(rows, found), {name: float(value) for name, value in sums.items()})

    def _row(
        self, row: DatumRow, kind: LossKind, options: Mapping[str, float], chunk: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute a row, with its gradient if gradients are on. Return its logprobs [M] and sums."""
        inputs = Columns(row.values, row.datum_ids)
        counted = kind.counted(inputs)
        if self._policy.shards:
            counted = torch.ones_like(counted)  # learners that share weights go backward together
        is_trained = torch.is_grad_enabled() and bool(counted.any())
        with nullcontext() if is_trained else torch.no_grad():
            logprobs = self._policy.target_logprobs(row.row, row.places, row.targets, counted, chunk)
            result = kind.compute(logprobs, inputs, options)
        if is_trained:
            result.loss.backward()  # type: ignore[no-untyped-call]
        return logprobs.detach(), {"loss": result.loss.detach().double(), **result.sums}

    def apply(self, step: AdamStep) -> tuple[dict[str, float], AdamNumbers]:
        """Take one AdamW step with the sum of all learners' gradients, equally on every learner, and discard it.

        A gradient of zero is a step, too: the moments decay. Raises StepError if the gradient isn't finite; policy and
        optimizer are then unchanged, and the gradient is discarded. Return the step's metrics and numbers.
        """
        self._progress.enter(UPDATE)
        gradient = self._optimizer.gradient
        if dist.is_initialized():
            dist.all_reduce(gradient)
        norm = self._optimizer.gradient_norm()
        numbers = AdamNumbers(step.learning_rate, norm, self._optimizer.num_steps + 1)
        if not math.isfinite(norm):
            self.discard()
            raise StepError(
                f"The accumulated gradient isn't finite (norm {norm}), so optimizer step {numbers.step} wasn't taken, "
                "and the gradient is discarded. Importance ratios that overflow are the usual cause: check that "
                "logprobs are the sampler's own for these tokens, or lower the learning rate of earlier steps."
            )
        if step.grad_clip_norm > 0:
            gradient *= min(1.0, step.grad_clip_norm / (norm + 1e-6))
        self._optimizer.step(step.learning_rate, step.weight_decay, (step.beta1, step.beta2), step.eps)
        self.discard()
        return {"grad_norm": norm, "lr": step.learning_rate, "optimizer_step": float(numbers.step)}, numbers

    def discard(self) -> None:
        """Forget the gradient."""
        self._progress.enter("")
        self._optimizer.gradient.zero_()
        self.has_gradient = False

    def kept(self) -> Tensor | None:
        """Return a copy of the gradient; None if there is none."""
        return self._optimizer.gradient.clone() if self.has_gradient else None

    def put_back(self, gradient: Tensor | None) -> None:
        """Continue with a gradient that `kept` returned."""
        self.discard()
        if gradient is not None:
            self._optimizer.gradient.copy_(gradient)
            self.has_gradient = True


def _shrink(limit: RowLimit, shortage: OutOfMemoryError, failed: DatumRow) -> None:
    """Halve what didn't fit. Raise DatumError if that is a single datum with the smallest chunk already."""
    is_divisible = failed.longest < failed.num_tokens
    if not is_divisible and shortage.chunk_size <= LEAST_CHUNK_SIZE:
        index = [shape[0] for shape in failed.shapes].index(failed.longest)
        raise DatumError(
            f"has {failed.longest} tokens, which don't fit into the memory of the learner ({shortage.said}); "
            "send a shorter one",
            "data",
            failed.datums[index],
        )
    if is_divisible:
        limit.row_tokens = min(failed.num_tokens // 2, limit.row_tokens or failed.num_tokens)
    limit.chunk_size = max(LEAST_CHUNK_SIZE, shortage.chunk_size // 2)


def _by_datum(rows: Sequence[DatumRow], logprobs: Sequence[Tensor]) -> dict[int, Tensor]:
    """Return the logprobs of each datum from those [M] of the rows."""
    if not rows:
        return {}
    shapes = [shape for row in rows for shape in row.shapes]
    numbers = [number for row in rows for number in row.datums]
    parts = torch.cat(list(logprobs)).float().cpu().split([torch.Size(shape).numel() for shape in shapes])
    return {number: own.view(shape) for number, shape, own in zip(numbers, shapes, parts, strict=True)}
