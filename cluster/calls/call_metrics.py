"""The metrics of a base model's calls."""

from __future__ import annotations

from tandem.cluster.metrics.recording import count, observe


class CallMetrics:
    """Counts for one base model. Thread-safe."""

    def __init__(self, base_model: str):
        self._base = base_model

    def ended(self, kind: str, outcome: str, seconds: float | None = None) -> None:
        """Count a call that has ended, with the seconds of its execution if it was answered."""
        count("tandem_calls_total", base_model=self._base, kind=kind, outcome=outcome)
        if seconds is not None:
            observe("tandem_call_seconds", seconds, base_model=self._base, kind=kind)

    def repeated(self, kind: str) -> None:
        """Count an attempt at a call that failed and is repeated."""
        count("tandem_calls_total", base_model=self._base, kind=kind, outcome="repeated")

    def trained(self, num_tokens: int) -> None:
        count("tandem_tokens_trained_total", num_tokens, base_model=self._base)

    def lost_lease(self) -> None:
        count("tandem_lease_losses_total", base_model=self._base)
