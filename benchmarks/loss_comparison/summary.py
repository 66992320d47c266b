"""All runs of a comparison, put together: per lag and configuration, intervals and differences from the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from loss_comparison.analysis import Difference, Interval, Outcome, holm, outcome, paired_difference, t_interval
from loss_comparison.configurations import BASELINE

METRICS = (
    "final_reward", "area", "steps", "kl_base", "entropy", "grad_norm", "clip_fraction", "num_steps", "cpu_s",
)  # fmt: skip
COMPARED = ("final_reward", "area")


@dataclass(frozen=True)
class Cell:
    """A configuration at one lag, over its seeds."""

    name: str
    lag: int
    outcomes: dict[int, Outcome]
    """By seed."""
    curves: dict[int, list[tuple[int, float]]]
    """By seed: evaluated versions with their rewards."""
    differences: dict[str, Difference]
    """From the baseline at the same lag, by metric of COMPARED; empty for the baseline itself."""

    @property
    def num_censored(self) -> int:
        return sum(own.is_censored for own in self.outcomes.values())

    def interval(self, metric: str) -> Interval:
        return t_interval([getattr(self.outcomes[seed], metric) for seed in sorted(self.outcomes)])

    def record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "lag": self.lag,
            "seeds": sorted(self.outcomes),
            "num_censored": self.num_censored,
            "intervals": {metric: asdict(self.interval(metric)) for metric in METRICS},
            "differences_from_baseline": {metric: asdict(found) for metric, found in self.differences.items()},
            "outcomes": {seed: asdict(own) for seed, own in self.outcomes.items()},
            "curves": self.curves,
        }


def cells(results: Sequence[Mapping[str, Any]], names: Sequence[str], threshold: float) -> list[Cell]:
    """Return one cell per configuration and lag that has a run, in the order of `names` for each lag.

    p-values are adjusted over all comparisons of a metric at a lag.
    """
    found: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for result in results:
        if result["request"]["kind"] != "replay":
            found.setdefault((result["request"]["lag"], result["request"]["name"]), []).append(result)
    every: list[Cell] = []
    for lag in sorted({lag for lag, _ in found}):
        of_lag = [_cell(name, lag, found[lag, name], threshold) for name in names if (lag, name) in found]
        baseline = next((cell for cell in of_lag if cell.name == BASELINE), None)
        every += of_lag if baseline is None else _compared(of_lag, baseline)
    return every


def _cell(name: str, lag: int, results: Sequence[Mapping[str, Any]], threshold: float) -> Cell:
    by_seed = {result["request"]["seed"]: result for result in results}
    curves = {
        seed: [(record["version"], record["eval"]["reward"]) for record in result["curve"] if "eval" in record]
        for seed, result in by_seed.items()
    }
    return Cell(name, lag, {seed: outcome(result, threshold) for seed, result in by_seed.items()}, curves, {})


def _compared(of_lag: Sequence[Cell], baseline: Cell) -> list[Cell]:
    others = [cell for cell in of_lag if cell is not baseline]
    differences: dict[str, dict[str, Difference]] = {cell.name: {} for cell in others}
    for metric in COMPARED:
        raw = [paired_difference(_by_seed(cell, metric), _by_seed(baseline, metric)) for cell in others]
        for cell, own, adjusted in zip(others, raw, holm([d.p_value for d in raw]), strict=True):
            differences[cell.name][metric] = replace(own, adjusted_p_value=adjusted)
    return [replace(cell, differences=differences.get(cell.name, {})) for cell in of_lag]


def _by_seed(cell: Cell, metric: str) -> dict[int, float]:
    return {seed: getattr(own, metric) for seed, own in cell.outcomes.items()}


@dataclass(frozen=True)
class Replayed:
    """One loss on the stored batches."""

    name: str
    first_cosine: float
    """Of its gradient with the baseline's on the first batch, where sampler and policy are the same."""
    later_cosine: float
    """The mean over the other batches."""
    length_ratio: float
    """Its gradient's length over the baseline's, mean over all batches."""
    clip_fraction: float
    """At the stored policies."""
    final_reward: float
    """On its own path, like `final_kl`."""
    final_kl: float
    cosines: tuple[float, ...]


def replayed(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Replayed]:
    by_name = {result["request"]["name"]: result for result in results if result["request"]["kind"] == "replay"}
    return [_replayed(name, by_name[name]) for name in names if name in by_name]


def _replayed(name: str, result: Mapping[str, Any]) -> Replayed:
    at = [record["at_stored_policy"] for record in result["curve"] if "at_stored_policy" in record]
    cosines = tuple(record.get("cosine_to_baseline", float("nan")) for record in at)
    evaluated = [record["eval"] for record in result["curve"] if "eval" in record]
    return Replayed(
        name=name,
        first_cosine=cosines[0],
        later_cosine=fmean(cosines[1:]) if len(cosines) > 1 else float("nan"),
        length_ratio=fmean(record.get("length_over_baseline", float("nan")) for record in at),
        clip_fraction=fmean(record["loss/clip_fraction"] for record in at),
        final_reward=evaluated[-1]["reward"],
        final_kl=evaluated[-1]["kl_base"],
        cosines=cosines,
    )


def largest_sampler_difference(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest distance between sampler's and learner's logprobs, over the last versions of all runs."""
    measured = [record.get("eval", {}) for result in results for record in result["curve"]]
    found = [own["sampler_learner_difference"] for own in measured if "sampler_learner_difference" in own]
    return max(found, default=float("nan"))
