"""The phases of a job, summed by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tandem.serve.store.ledger.sums import Sum
from tandem.serve.usage.timeline import Stretch
from tandem.serve.usage.wire import PhaseTotal


def phase_totals(stretches: Sequence[Stretch], sums: Iterable[Sum]) -> list[PhaseTotal]:
    """Return the sum of each phase, the longest first. `sums` of the job by phase know the seconds of engines."""
    engine_seconds: dict[str, float] = {}
    for one in sums:
        [(_, phase)] = one.group
        engine_seconds[phase] = engine_seconds.get(phase, 0.0) + one.amounts.engine_seconds
    totals = []
    for name in dict.fromkeys(stretch.name for stretch in stretches):
        own = [stretch for stretch in stretches if stretch.name == name]
        totals.append(
            PhaseTotal(
                name=name,
                seconds=sum(stretch.seconds for stretch in own),
                learner_seconds=sum(stretch.learner_seconds for stretch in own),
                engine_seconds=engine_seconds.get(name, 0.0),
                cpu_seconds=sum(stretch.cpu_seconds for stretch in own),
                trained_tokens=sum(stretch.trained_tokens for stretch in own),
                scored_tokens=sum(stretch.scored_tokens for stretch in own),
                engine_scored_tokens=sum(stretch.engine_scored_tokens for stretch in own),
            )
        )
    return sorted(totals, key=lambda total: -total.seconds)
