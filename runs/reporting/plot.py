"""The run's curve: reward and its spread by version, evaluations on top."""

from __future__ import annotations

from pathlib import Path

from tandem.runs.ledger import Ledger


def plot_rewards(ledger: Ledger, title: str, path: Path) -> None:
    """Write a PNG. A batch is drawn at the version that it trained, which is about the one that sampled it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(figsize=(7, 4))
    rows = ledger.of("training")
    versions = [row["version"] - 1 for row in rows]
    means = [row["reward/mean"] for row in rows]
    lows = [max(row["reward/min"], row["reward/mean"] - row["reward/std"]) for row in rows]
    highs = [min(row["reward/max"], row["reward/mean"] + row["reward/std"]) for row in rows]
    axes.plot(versions, means, marker=".", label="rollouts, mean of a batch")
    axes.fill_between(versions, lows, highs, alpha=0.15, linewidth=0, label="± standard deviation")
    evaluations = ledger.of("evaluation")
    if evaluations:
        x, y = [row["version"] for row in evaluations], [row["eval/reward/mean"] for row in evaluations]
        axes.plot(x, y, marker="o", linestyle="--", label="evaluation, mean")
    axes.set(xlabel="policy version", ylabel="reward", title=title)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=8)
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
