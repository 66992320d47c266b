"""The rollout that a capture records: its exchanges with models, and the reward that trains them."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tandem.client.errors import TandemError

if TYPE_CHECKING:
    from tandem.client.capturing.recording import Recording

ANSWERS = {"chat_completions": "choices", "completions": "choices", "responses": "output", "messages": "content"}
"""The protocols, and the field that each answer of a protocol has."""


class NothingCapturedError(TandemError, ValueError):
    """A rollout without an exchange, which can't be trained."""


class Rollout:
    """What an agent asked models and what they answered, as one trajectory with its reward.

    Set `reward` when it is known, and pass the object itself to `client.train`. Exchanges with other models than the
    trained one, like a judge, are ignored by the service.

    Attributes:
        reward: of the whole trajectory.
        metrics, metadata, logs: travel with the trajectory; numbers, values, and lines of text.
    """

    def __init__(self, reward: float = 0.0):
        self.reward = reward
        self.metrics: dict[str, float] = {}
        self.metadata: dict[str, Any] = {}
        self.logs: list[str] = []
        self._recordings: list[Recording] = []

    @property
    def exchanges(self) -> dict[str, list[dict[str, Any]]]:
        """The recorded exchanges of each protocol, in order of time."""
        exchanges: dict[str, list[dict[str, Any]]] = {}
        for recording in self._settled():
            if recording.answer is not None:
                exchanges.setdefault(recording.endpoint, []).append(recording.exchange())
        for found in exchanges.values():
            found.sort(key=lambda exchange: (_time(exchange["start_time"]), _time(exchange["end_time"])))
        return exchanges

    @property
    def not_recorded(self) -> dict[str, int]:
        """How many requests weren't recorded, by reason: `status 429`, `aborted`, `no answer`, `unreadable`."""
        return dict(Counter(recording.fault for recording in self._settled() if recording.answer is None))

    def trajectory(self) -> dict[str, Any]:
        """Return the trajectory as a training job takes it. Raise NothingCapturedError if there is no exchange."""
        exchanges = self.exchanges
        if not exchanges:
            missing = ", ".join(f"{count} {reason}" for reason, count in self.not_recorded.items())
            raise NothingCapturedError(
                "The capture recorded no exchange with a model"
                + (f" (requests without a usable answer: {missing})" if missing else "")
                + ". Run the agent inside the `with` block, in the same thread or in tasks and threads that inherit "
                "its context, and let it call /chat/completions, /completions, /responses or /messages by httpx or "
                "httpx2."
            )
        optional = {"metrics": self.metrics, "metadata": self.metadata, "logs": self.logs}
        return {"exchanges": exchanges, "reward": self.reward, **{k: v for k, v in optional.items() if v}}

    def add(self, recording: Recording) -> None:
        self._recordings.append(recording)

    def _settled(self) -> list[Recording]:
        """Return the recordings; one whose consumer stopped reading after the last event has its answer now."""
        for recording in self._recordings:
            recording.settle()
        return self._recordings

    def __repr__(self) -> str:
        counts = {endpoint: len(found) for endpoint, found in self.exchanges.items()}
        return f"<Rollout reward={self.reward} exchanges={counts} not_recorded={self.not_recorded}>"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
