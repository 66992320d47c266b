"""Calls of runs as the coordinator sees them, and the store that it needs. The service implements the store.

A run is the model of one training client. Its calls have the numbers 1, 2, 3, ... and take effect in this order. The
state of a run lies in an anchor, a durable checkpoint, and in the calls after it, which make the state again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tandem.rl.errors import RLError

CallKind = Literal[
    "forward_backward", "forward", "optim_step", "save_weights", "save_for_sampler", "load_weights", "missing"
]
"""`missing`: a number whose call didn't arrive in time. Such a call has failed."""
CallOutcome = Literal["answered", "failed"]
Category = Literal["user", "server"]
"""Whose error it is: the client sends the call of a `user` error again only after a change."""
JSON, PROTOBUF = "application/json", "application/x-protobuf"


class SaveRefusedError(RLError, ValueError):
    """The name that a save asks for, or the number of its sampler, is taken."""


@dataclass(frozen=True)
class Anchor:
    """The durable checkpoint that a run's state is made again from."""

    digest: str
    seq: int
    """The last call whose effect it contains; 0 for the state that the run began with. No gradient is accumulated
    there, so that nothing but the checkpoint and later calls is needed."""
    has_optimizer: bool
    """Whether training continues with the checkpoint's optimizer state; otherwise with a new optimizer."""


@dataclass(frozen=True)
class ClaimedRun:
    """A run whose calls this coordinator may execute. `attempt` fences every later write of the claim."""

    id: str
    model_id: str
    policy: str
    """The model as rollouts ask for it: entity/project/name."""
    base_model: str
    attempt: int
    anchor: Anchor
    applied_seq: int
    """The last call that has ended, with an answer or an error; 0 before the first."""
    key_id: str | None
    entity: str


@dataclass(frozen=True)
class RunCall:
    """One call of a run.

    Options by kind:
        optim_step: the fields of `rl.settings.AdamStep`.
        load_weights: `digest` of the checkpoint, and `optimizer`: whether to take its optimizer state, too.
        save_weights, save_for_sampler: whatever the store needs to make the checkpoint's name and result.
    """

    seq: int
    kind: CallKind
    body_key: str | None
    """Artifact of forward_backward and forward: a ForwardBackwardRequest in protobuf, as it is or as a zstd frame."""
    options: Mapping[str, Any]
    num_bytes: int
    """Of the body."""
    outcome: CallOutcome | None = None
    """None until the call has ended."""

    @property
    def is_answered(self) -> bool:
        return self.outcome == "answered"


@dataclass(frozen=True)
class CallUsage:
    """What a call has used, for the ledger."""

    trained_tokens: int = 0
    """Of forward_backward: tokens of packed rows."""
    scored_tokens: int = 0
    """Of forward."""
    seconds: float = 0.0
    """From the begin of its execution, with its waits for the learners."""
    learner_seconds: float = 0.0
    """Seconds in which the call had the learners' turn, times the number of learners."""
    cpu_seconds: float = 0.0
    """Of the thread that executes it."""


NOTHING_USED = CallUsage()


@dataclass(frozen=True)
class SavedState:
    """The durable checkpoint that a call has made."""

    digest: str
    num_bytes: int
    is_anchor: bool
    """Whether the checkpoint is the run's whole state after the call, so that it becomes its anchor. Otherwise the run
    also has an accumulated gradient."""
    has_optimizer: bool
    warning: str | None = None
    """Why an engine doesn't answer with this state as the learners do, or may not."""


@dataclass(frozen=True)
class CallResult:
    """The answer of a call."""

    content: bytes = b""
    """Empty for saves: the store makes their result from the path or the sampler that it adds."""
    media_type: str = JSON
    usage: CallUsage = NOTHING_USED
    saved: SavedState | None = None
    """Of save_weights and save_for_sampler."""
    anchor: Anchor | None = None
    """The run's next anchor, where the call determines it: load_weights, and saves without an accumulated gradient."""


class CallStore(Protocol):
    """The journal of calls as the coordinator uses it. Each write is one transaction, fenced by the claim's attempt.

    Methods that take a run raise LeaseLostError if the claim no longer holds: taken over, or the run was unloaded.
    """

    def claim_run(self, base_model: str, owner: str, lease_s: float) -> ClaimedRun | None:
        """Claim a run that has a call which can be executed next, and no claim or one whose lease has run out.

        None if there is none. The run whose call has waited longest is first.
        """

    def ready_runs(self, base_model: str) -> Sequence[str]:
        """Return the ids of all runs that have a call which can be executed next, claimed or not, in one cheap query.

        The coordinator asks after each change of the store.
        """

    def renew(self, run: ClaimedRun, lease_s: float) -> None:
        """Extend the lease."""

    def release(self, run: ClaimedRun) -> None:
        """Give the claim back. No error if it no longer holds."""

    def answered_since_anchor(self, run: ClaimedRun) -> tuple[Anchor, Sequence[RunCall]]:
        """Return the run's present anchor, and the calls after it that have ended, up to `applied_seq`, in order.

        Failed ones are among them: a failed optim_step has discarded the accumulated gradient.
        """

    def next_calls(self, run: ClaimedRun) -> Sequence[RunCall]:
        """Return the calls after the run's present `applied_seq`, in order, up to the first number that is missing.

        Those that have failed already (refused on arrival, or given up by `fail_gaps`) are among them. They need no
        answer: `applied_seq` passes them with the answer of a later call. Empty if no call has arrived.
        """

    def check_save(self, run: ClaimedRun, call: RunCall) -> int:
        """Return the step that the model's next version gets.

        Raises SaveRefusedError if the checkpoint of the save couldn't be recorded, so that none is made.
        """

    def answer(self, run: ClaimedRun, call: RunCall, result: CallResult) -> Sequence[str]:
        """In one transaction, record result and usage, and let `applied_seq` be the call's number.

        For a save, add the version or the named checkpoint, the sampler if one is asked for, and the result's JSON.
        With `result.anchor`, it becomes the run's anchor. Return the keys of bodies that aren't needed any more. An
        answer that the same claim has given already is ignored.
        """

    def refuse(
        self, run: ClaimedRun, call: RunCall, message: str, category: Category, usage: CallUsage = NOTHING_USED
    ) -> None:
        """Record that the call has failed, without an effect except that an optim_step discards the accumulated
        gradient, and what its tries have used, and let `applied_seq` be its number. Ignored like a repeated answer."""

    def set_anchor(self, run: ClaimedRun, anchor: Anchor) -> Sequence[str]:
        """Record a later anchor, unless the run has an even later one.

        Return the keys of bodies that aren't needed any more.
        """

    def report_waiting(self, run: ClaimedRun, reason: str | None) -> None:
        """Show clients that wait for a result what the run waits for; None for nothing."""

    def fail_gaps(self, base_model: str) -> int:
        """Give up numbers that have been missing too long (`tinker.gap_s`): add them as failed calls of the kind
        `missing`, and fail the calls behind them that have arrived. Return how many runs were concerned."""

    def change_mark(self) -> object | None:
        """Return a value that usually changes with each write to the store; None if only a query can tell.

        It costs microseconds.
        """
