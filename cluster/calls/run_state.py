"""The coordinator's knowledge of a run's state on the learners, which outlives a claim."""

from __future__ import annotations

from dataclasses import dataclass, field

from tandem.cluster.learners.run_training import RunTraining


@dataclass
class RunState:
    """What the learners hold of a run, up to `seq`."""

    training: RunTraining
    seq: int
    """The last call that has ended."""
    has_gradient: bool = False
    failed_seq: int | None = None
    """The first call of the present batch that failed."""
    num_steps: int = 0
    """Optimizer steps since the anchor, or since one that is being written."""
    num_bytes: int = 0
    """Of bodies since then."""

    @property
    def is_whole(self) -> bool:
        """Whether a checkpoint of the weights and moments would be all of the run's state."""
        return not self.has_gradient and self.failed_seq is None

    def anchored(self) -> None:
        """Count from here on."""
        self.num_steps = self.num_bytes = 0


@dataclass
class RunStates:
    """The states that may still be held when a run is claimed again, the most recently used ones last."""

    max_states: int = 4096
    _states: dict[str, RunState] = field(default_factory=dict)

    def take(self, run_id: str, applied_seq: int) -> RunState | None:
        """Remove and return a run's state, if no other process has executed its calls meanwhile."""
        state = self._states.pop(run_id, None)
        if state is None or state.seq == applied_seq:
            return state
        state.training.forget()
        return None

    def put(self, run_id: str, state: RunState) -> None:
        self._states[run_id] = state
        while len(self._states) > self.max_states:
            self._states.pop(next(iter(self._states))).training.forget()
