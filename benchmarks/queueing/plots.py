"""Plots of the simulation's results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

COLORS = {1: "#4477aa", 8: "#ee6677", 64: "#228833"}
MARKERS = {"proxy": "s", "API": "^", "preparation": "D", "checks": "v", "engines": "*",
           "store": "X", "engine processes": "P", "learners": "o"}  # fmt: skip
TITLES = {"tiny": "tiny model, all measured", "large": "4B model, accelerators assumed"}


def plot_all(outcome: dict[str, Any], results: Path) -> None:
    plot_rollouts(outcome, results / "scaling_rollouts.png")
    plot_runs(outcome, results / "scaling_runs.png")
    plot_utilisation(outcome, results / "scaling_utilisation.png")
    plot_publication(outcome, results / "scaling_publication.png")


def plot_rollouts(outcome: dict[str, Any], path: Path) -> None:
    """Plot rollouts/s by open groups: dashed with one proxy and API replica, solid with eight."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for engines, color in COLORS.items():
            for replicas, style in ((1, "--"), (8, "-")):
                points = [r for r in outcome[name]["rollouts"]
                          if (r["fleet"]["engines"], r["fleet"]["api_replicas"]) == (engines, replicas)]  # fmt: skip
                label = f"{engines} engine{'s' * (engines > 1)}, {replicas} API replica{'s' * (replicas > 1)}"
                axis.loglog([p["at_once"] for p in points], [p["rollouts_per_s"] for p in points], style, color=color,
                            marker=".", label=label)  # fmt: skip
        axis.set(title=f"Rollouts alone: {title}", xlabel="groups of 8 open at once", ylabel="rollouts per second")
        axis.grid(alpha=0.3, which="both")
    axes[0].legend(fontsize=7)
    _save(figure, path)


def plot_runs(outcome: dict[str, Any], path: Path) -> None:
    """Plot jobs/s and rollouts/s by learners. The marker shows the busiest part."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    seen: set[str] = set()
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for engines, color in COLORS.items():
            points = [r for r in outcome[name]["runs"] if r["fleet"]["engines"] == engines]
            learners = [p["fleet"]["learners"] for p in points]
            axis.plot(learners, [p["jobs_per_s"] for p in points], "-", color=color)
            for count, point in zip(learners, points, strict=True):
                axis.plot(count, point["jobs_per_s"], MARKERS[point["bottleneck"]], color=color)
                seen.add(point["bottleneck"])
        load = outcome[name]["runs"][0]["load"]
        per_job = load["groups"] * load["completions"]
        axis.set(title=f"{load['runs']} RL runs: {title}", xlabel="learners of the one base model")
        axis.set(ylabel="jobs per second", xscale="log", ylim=(0, None))
        axis.set_xticks(learners, learners)
        axis.secondary_yaxis("right", functions=(lambda x, n=per_job: x * n, lambda x, n=per_job: x / n)).set_ylabel(
            "rollouts per second"
        )
        axis.grid(alpha=0.3)
    handles = [Line2D([], [], color=c, label=f"{e} engine{'s' * (e > 1)}") for e, c in COLORS.items()]
    handles += [Line2D([], [], color="gray", ls="", marker=MARKERS[b], label=f"busiest: {b}") for b in sorted(seen)]
    axes[0].legend(handles=handles, fontsize=7)
    figure.subplots_adjust(wspace=0.45)
    _save(figure, path)


def plot_utilisation(outcome: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        points = [r for r in outcome[name]["runs"] if r["fleet"]["learners"] in (1, 8, 64)]
        resources = list(points[0]["utilisation"])
        shares = [[point["utilisation"][resource] for point in points] for resource in resources]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="YlOrRd", aspect="auto")
        for y, of_resource in enumerate(shares):
            for x, share in enumerate(of_resource):
                axis.text(
                    x, y, f"{share:.0%}", ha="center", va="center", fontsize=7, color="white" if share > 0.7 else "k"
                )
        labels = [f"{p['fleet']['engines']} E\n{p['fleet']['learners']} L" for p in points]
        axis.set_xticks(range(len(points)), labels, fontsize=7)
        axis.set_yticks(range(len(resources)), resources, fontsize=8)
        axis.set_title(f"Utilisation (E engines, L learners): {title}", fontsize=9)
    figure.colorbar(image, ax=axes, fraction=0.03)
    _save(figure, path)


def plot_publication(outcome: dict[str, Any], path: Path) -> None:
    """Plot publication of the large model only; the tiny model's files are small."""
    figure, axis = plt.subplots(figsize=(6, 4))
    records = outcome["large"]["publication"]
    for bandwidth, color in ((1.25e9, "#ee6677"), (5e9, "#4477aa"), (None, "#228833")):
        points = [r for r in records if r["artifact_bytes_per_s"] == bandwidth]
        out = "as fast as all nodes" if bandwidth is None else f"{bandwidth * 8 / 1e9:g} Gbit/s"
        for share, style in (("p99_s", "-"), ("p50_s", ":")):
            label = f"artifact store: {out}, {share.removesuffix('_s')}"
            engines = [p["engines"] for p in points]
            axis.loglog(engines, [p[share] for p in points], style, color=color, marker=".", label=label)
    axis.set_xticks([1, 8, 64], ["1", "8", "64"])
    axis.grid(alpha=0.3, which="both")
    axis.set(title=f"An adapter of {records[0]['megabytes']:.3g} MB (4B model)", xlabel="engines")
    axis.set_ylabel("seconds until an engine has a new version")
    axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
