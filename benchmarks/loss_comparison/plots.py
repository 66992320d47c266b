"""Learning curves and differences from the baseline, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from loss_comparison.analysis import t_interval
from loss_comparison.configurations import BASELINE, CONFIGURATIONS, COUNTERPARTS, TRL_CONFIGURATIONS
from loss_comparison.summary import Cell, Replayed

COLORS = [plt.get_cmap("tab10")(index) for index in range(10)]


def plot_curves(cells: Sequence[Cell], threshold: float, path: Path) -> None:
    """Plot the mean reward of each version with its interval over seeds: a row per lag, a panel per family."""
    families = list(dict.fromkeys(found.family for found in (*CONFIGURATIONS, *TRL_CONFIGURATIONS)))
    lags = sorted({cell.lag for cell in cells})
    families = [family for family in families if any(_family(cell.name) == family for cell in cells)]
    figure, grid = plt.subplots(
        len(lags), len(families), figsize=(3.6 * len(families), 3.5 * len(lags)), sharex=True, sharey=True,
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for row, lag in zip(grid, lags, strict=True):
        for axes, family in zip(row, families, strict=True):
            _panel(axes, [cell for cell in cells if cell.lag == lag], family, threshold)
            axes.set_title(f"{family}, lag {lag}", fontsize=10)
        row[0].set_ylabel("reward on evaluation tasks")
    for axes in grid[-1]:
        axes.set_xlabel("policy version")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axes: Axes, of_lag: Sequence[Cell], family: str, threshold: float) -> None:
    shown = [cell for cell in of_lag if _family(cell.name) == family and cell.name != BASELINE]
    if not shown and not any(_family(cell.name) == family for cell in of_lag):
        axes.text(0.5, 0.5, "not run", ha="center", va="center", transform=axes.transAxes, color="gray")
        return
    wanted = {COUNTERPARTS.get(cell.name) for cell in shown}
    beside = [cell for cell in of_lag if cell.name in wanted - {BASELINE}]
    baseline = [cell for cell in of_lag if cell.name == BASELINE]
    axes.axhline(threshold, color="lightgray", linewidth=0.8, zorder=0)
    for cell in baseline:
        _curve(axes, cell, "black", "--", f"{cell.name} (default)")
    for color, cell in zip(COLORS, [*shown, *beside], strict=False):
        _curve(axes, cell, color, "-", cell.name)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=7, loc="lower right")


def _curve(axes: Axes, cell: Cell, color: object, style: str, label: str) -> None:
    versions = [version for version, _ in next(iter(cell.curves.values()))]
    of_version = [[dict(curve)[version] for curve in cell.curves.values()] for version in versions]
    intervals = [t_interval(rewards) for rewards in of_version]
    means = [interval.mean for interval in intervals]
    axes.plot(versions, means, style, color=color, linewidth=1.4, label=f"{label}, n={len(cell.curves)}")
    low = [interval.mean - interval.half_width for interval in intervals]
    high = [interval.mean + interval.half_width for interval in intervals]
    axes.fill_between(versions, low, high, color=color, alpha=0.10, linewidth=0)


def plot_areas(cells: Sequence[Cell], path: Path) -> None:
    """Plot the area under each curve: interval and single seeds, lags side by side, the baseline's mean as a line."""
    lags = sorted({cell.lag for cell in cells})
    names = list(dict.fromkeys(cell.name for cell in cells))
    figure, grid = plt.subplots(
        1, len(lags), figsize=(4.6 * len(lags) + 1.2, 0.28 * len(names) + 1.2), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, lag in zip(grid[0], lags, strict=True):
        for cell in (cell for cell in cells if cell.lag == lag):
            place, interval = names.index(cell.name), cell.interval("area")
            axes.plot([own.area for own in cell.outcomes.values()], [place] * interval.n, ".", color="lightgray")
            axes.errorbar(interval.mean, place, xerr=interval.half_width, fmt="o", color="tab:blue", capsize=3, ms=4)
            if cell.name == BASELINE:
                axes.axvline(interval.mean, color="black", linestyle="--", linewidth=0.8)
        axes.set_title(f"lag {lag}")
        axes.set_xlabel("area under the learning curve (mean reward during the run)")
        axes.grid(alpha=0.2, axis="x")
    grid[0][0].set_yticks(range(len(names)), names)
    grid[0][0].invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_replay(replays: Sequence[Replayed], path: Path) -> None:
    """Plot the cosine of each loss's gradient with the baseline's, per stored batch."""
    others = [one for one in replays if one.name != BASELINE]
    columns = max(len(one.cosines) for one in others)
    figure, axes = plt.subplots(figsize=(0.55 * columns + 3.4, 0.3 * len(others) + 1.3), layout="constrained")
    image = axes.imshow([one.cosines for one in others], vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(others)), [one.name for one in others], fontsize=8)
    axes.set_xticks(range(columns))
    axes.set_xlabel("stored batch")
    for row, one in enumerate(others):
        for column, cosine in enumerate(one.cosines):
            color = "white" if cosine < 0.6 else "black"
            axes.text(column, row, f"{cosine:.2f}", ha="center", va="center", fontsize=6, color=color)
    figure.colorbar(image, label=f"cosine with the gradient of {BASELINE}")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _family(name: str) -> str:
    return next(found.family for found in (*CONFIGURATIONS, *TRL_CONFIGURATIONS) if found.name == name)
