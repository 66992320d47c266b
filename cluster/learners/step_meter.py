"""The speed and memory of a learner's gradient steps, as metrics of its process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

from tandem.cluster.metrics.peak_flops import peak_flops
from tandem.cluster.metrics.recording import set_gauge
from tandem.rl.gradient_step.work import ModelWork, size_of_step

if TYPE_CHECKING:
    from tandem.rl.packing import PackedSequence


class LearnerMemory(TypedDict):
    """Bytes of torch's allocator on the learner's GPU."""

    allocated: int
    reserved: int
    peak: int
    """Most allocated in the last step."""
    total: int
    """Of the GPU."""


class Measured(TypedDict):
    """One learner's last gradient step."""

    device: str
    """The GPU's name, or cpu."""
    tokens_per_s: float | None
    """None before the first step."""
    mfu: float | None
    """None where the GPU's peak isn't known."""
    memory: LearnerMemory | None


class StepMeter:
    """Measures the steps of one rank: `meter.begin()`, the step, `meter.end(rows, seconds)`."""

    def __init__(self, base_model: str, rank: int, device: str = "cpu", work: ModelWork | None = None):
        """`device` is the name that CUDA gives; without `work`, no MFU is known."""
        self._labels = {"base_model": base_model, "rank": str(rank)}
        self._is_cuda, self._work, self._peak = device != "cpu", work, peak_flops(device)
        self.measured: Measured = {"device": device, "tokens_per_s": None, "mfu": None, "memory": None}

    def begin(self) -> None:
        if self._is_cuda:
            import torch

            torch.cuda.reset_peak_memory_stats()

    def end(self, rows: Sequence[PackedSequence], seconds: float) -> None:
        """Record a step over these rows, this rank's share of it."""
        if not rows or seconds <= 0:
            return
        num_tokens, num_pairs = size_of_step(rows)
        self.measured["tokens_per_s"] = num_tokens / seconds
        set_gauge("tandem_learner_tokens_per_second", num_tokens / seconds, **self._labels)
        if self._work is not None and self._peak is not None:
            mfu = self._work.operations(num_tokens, num_pairs) / seconds / self._peak
            self.measured["mfu"] = mfu
            set_gauge("tandem_learner_mfu_ratio", mfu, **self._labels)
        if memory := self._memory():
            self.measured["memory"] = memory
            for kind in ("allocated", "reserved", "peak"):
                set_gauge("tandem_learner_gpu_memory_bytes", memory[kind], **self._labels, kind=kind)

    def _memory(self) -> LearnerMemory | None:
        if not self._is_cuda:
            return None
        import torch

        return {
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "peak": torch.cuda.max_memory_allocated(),
            "total": torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
        }
