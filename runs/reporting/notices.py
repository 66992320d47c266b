"""Sentences about rollouts that the user should know of: left out, without a metric, or all the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from tandem.rl.environments.results import ResultError
from tandem.rl.environments.rollouts import RolledOutGroup, RolloutFailure
from tandem.runs.reporting.metrics import is_identical
from tandem.runs.reporting.report import Report

MAX_CAUSES = 3
IDENTICAL_CAUSES = (
    "temperature 0, top_k 1, a small max_tokens or top_p, a seed that the environment sets on its own client, or a "
    "policy that has become certain"
)


class Notices:
    """Reports each kind of notice when it first occurs; the counts of every batch are in its metrics."""

    def __init__(self, environment: str, report: Report):
        self._environment, self._report = environment, report
        self._said: set[str] = set()

    def of_batch(self, label: str, groups: Sequence[RolledOutGroup]) -> None:
        self.of_evaluation(label, groups)
        num_identical = sum(map(is_identical, groups))
        if num_identical == len(groups):
            self._say_once(
                "identical: all",
                f"In all {num_identical} groups of {label}, every rollout sampled the same tokens, so there is nothing "
                f"to compare and little to train. Likely causes: {IDENTICAL_CAUSES}.",
            )
        elif num_identical:
            self._say_once(
                "identical: some",
                f"In {num_identical} of the {len(groups)} groups of {label}, every rollout sampled the same tokens, so "
                f"these groups train nothing. Likely causes: {IDENTICAL_CAUSES}. Later batches have their counts in "
                "metrics.jsonl (rollouts/identical_groups).",
            )

    def of_evaluation(self, label: str, groups: Sequence[RolledOutGroup]) -> None:
        num_rollouts = sum(len(group.group.trajectories) + len(group.failures) for group in groups)
        new = [(place, failure) for place, failure in _failures(groups) if _kind(failure) not in self._said]
        kinds: dict[str, tuple[int, RolloutFailure]] = {}
        for place, failure in new:
            kinds.setdefault(_kind(failure), (place, failure))
        for kind, (place, failure) in list(kinds.items())[:MAX_CAUSES]:
            number = sum(_kind(other) == kind for _, other in new)
            self._say_once(
                kind,
                f"{number} of the {num_rollouts} rollouts of {label} were left out. The first is rollout "
                f"{failure.rollout} of group {place} ({self._environment}): {failure.cause[:300]}",
            )
        for name, number in Counter(name for group in groups for name in group.dropped_metrics).items():
            self._say_once(
                f"metric: {name}",
                f"The metric {name[:100]} of {self._environment} isn't a finite number in {number} of the "
                f"{num_rollouts} rollouts of {label}; it is left out of the means there.",
            )

    def _say_once(self, kind: str, sentence: str) -> None:
        if kind not in self._said:
            self._said.add(kind)
            self._report.say(sentence)


def _failures(groups: Sequence[RolledOutGroup]) -> Iterator[tuple[int, RolloutFailure]]:
    for place, group in enumerate(groups):
        for failure in group.failures:
            yield place, failure


def _kind(failure: RolloutFailure) -> str:
    """Return the error's class, with the field of a result's error."""
    place = failure.error.place if isinstance(failure.error, ResultError) else ()
    return ".".join([type(failure.error).__name__, *(part for part in place if isinstance(part, str))])
