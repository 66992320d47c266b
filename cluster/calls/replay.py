"""Which calls make a run's state again, starting from its anchor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem.cluster.calls.call import RunCall

GRADIENT_KINDS = ("forward_backward", "missing")
"""Calls whose failure leaves the accumulated gradient incomplete. Nobody knows what a missing one was."""


@dataclass(frozen=True)
class Replay:
    """The effects of calls that have ended."""

    calls: tuple[RunCall, ...] = ()
    """Those to execute again, in order: gradients that were discarded are left out."""
    failed_seq: int | None = None
    """The first call of the present batch that failed, so that the gradient is incomplete."""

    @property
    def has_gradient(self) -> bool:
        return bool(self.calls) and self.calls[-1].kind == "forward_backward"

    @property
    def num_steps(self) -> int:
        return sum(call.kind == "optim_step" for call in self.calls)

    @property
    def num_bytes(self) -> int:
        return sum(call.num_bytes for call in self.calls)


def replay_of(calls: Sequence[RunCall]) -> Replay:
    """Return how to make the state after these calls, all ended and after an anchor.

    An optim_step ends a batch: one that was answered has used the gradient, one that failed has discarded it.
    """
    effects: list[RunCall] = []
    batch: list[RunCall] = []
    failed_seq: int | None = None
    for call in calls:
        if call.kind == "optim_step":
            if call.is_answered:
                effects += [*batch, call]
            batch, failed_seq = [], None
        elif call.kind == "load_weights" and call.is_answered:
            effects, batch, failed_seq = [call], [], None
        elif call.kind in GRADIENT_KINDS:
            if call.is_answered:
                batch.append(call)
            elif failed_seq is None:
                failed_seq = call.seq
    return Replay((*effects, *batch), failed_seq)
