"""The report in Markdown: tables with intervals, conclusions, and how the runs were made."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loss_comparison.analysis import FINAL_EVALUATIONS, LEVEL, Interval
from loss_comparison.configurations import BASELINE, TRL_DIFFERENCES, TRL_STEPS_PER_VERSION, Configuration
from loss_comparison.settings import Settings
from loss_comparison.summary import Cell, Replayed

SIGNIFICANT = 0.05


def render(
    cells: Sequence[Cell], replays: Sequence[Replayed], configurations: Sequence[Configuration], settings: Settings,
    threshold: float, how: Mapping[str, Any],
) -> str:  # fmt: skip
    """`how` describes the runs: command, date, commit, machine, versions, missing, sampler_difference, replay."""
    parts = ["# Loss functions compared", _made(how, settings), _setting(settings, threshold)]
    for lag in sorted({cell.lag for cell in cells}):
        of_lag = [cell for cell in cells if cell.lag == lag]
        parts += [_lag_title(lag), _table(of_lag), _differences(of_lag), _finding(of_lag)]
    if cells:
        parts += ["## Curves", "![learning curves](curves.png)", "![area under the curves](areas.png)"]
    if replays:
        parts += [_replay(replays, how)]
    parts += [_conclusions(cells), _peer(), _configurations(configurations)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _made(how: Mapping[str, Any], settings: Settings) -> str:
    lines = [
        f"- command: `{how['command']}`",
        f"- date: {how['date']}; commit: {how['commit']}",
        f"- machine: {how['machine']}. **It was shared with other work**, so seconds are CPU seconds of the run's own "
        "process, for sampling and training without the evaluations; wall seconds would be meaningless. CPU seconds "
        "also rise when caches and cores are shared: read them as an order of magnitude.",
        f"- software: {how['versions']}",
        f"- largest distance of a sampled token's logprob between sampler and learner, over the last versions of all "
        f"runs: {how['sampler_difference']:.1e}",
    ]
    if how["missing"]:
        lines.append(f"- **not finished: {len(how['missing'])} of {how['planned']} planned runs**, so n varies below")
    return "\n".join(lines)


def _setting(settings: Settings, threshold: float) -> str:
    rollouts = settings.groups_per_version * settings.group_size
    return (
        f"Base model `{settings.base_model}`, task `{settings.environment}`. A run makes {settings.num_versions} "
        f"policy versions; each is one training job on {settings.groups_per_version} tasks × {settings.group_size} "
        f"rollouts = {rollouts} trajectories, one gradient step per packed row of "
        f"{settings.packed_sequence_length} tokens. Learning rate {settings.learning_rate:g}, "
        f"LoRA rank {settings.lora_r}; AdamW and the gradient clip are the "
        "service's. These were chosen on one seed of the default loss, so that learning is visible and doesn't end at "
        "once, and **are tuned for none of the losses**: another learning rate may order them differently.\n\n"
        f"Every version is evaluated on {settings.num_eval_tasks} held-out tasks, one rollout each at temperature 1. "
        "Runs of one seed share tasks, their order, the evaluation and the random numbers of sampling; they differ in "
        "the loss only. A lag of k means that version v is trained on rollouts of version max(0, v - 1 - k).\n\n"
        f"± is the half width of a {LEVEL:.0%} confidence interval: Student's t over seeds, n of them. Final reward: "
        f"mean of the last {FINAL_EVALUATIONS} evaluations. Area: under the evaluated curve, divided by its length. "
        f"Steps: the first version that reaches {threshold:g}; a run that never does counts as {settings.num_versions} "
        "and is censored, so the mean is then a lower bound (≥), with the number of runs that reached it. KL (of the "
        "last version from the base model, nats per sampled token) and entropy (nats per sampled token) are of the "
        "last version. Gradient norm: before clipping, mean over gradient steps."
    )


def _lag_title(lag: int) -> str:
    return "## On-policy (lag 0)" if lag == 0 else f"## With a lag of {lag} versions"


def _table(cells: Sequence[Cell]) -> str:
    rows = [
        [
            cell.name, str(len(cell.outcomes)), pm(cell.interval("final_reward"), 3), pm(cell.interval("area"), 3),
            _steps(cell), pm(cell.interval("kl_base"), 3), pm(cell.interval("entropy"), 3),
            pm(cell.interval("grad_norm"), 2), pm(cell.interval("clip_fraction"), 3),
            number(cell.interval("num_steps").mean, 1), pm(cell.interval("cpu_s"), 1),
        ]
        for cell in cells
    ]  # fmt: skip
    return markdown(
        ["configuration", "n", "final reward", "area", "steps to threshold", "KL from base", "entropy",
         "gradient norm", "clipped tokens", "gradient steps per version", "CPU s"], rows,
    )  # fmt: skip


def _steps(cell: Cell) -> str:
    text = pm(cell.interval("steps"), 1)
    if not cell.num_censored:
        return text
    return f"≥ {text} ({len(cell.outcomes) - cell.num_censored} of {len(cell.outcomes)} reached it)"


def _differences(cells: Sequence[Cell]) -> str:
    compared = [cell for cell in cells if cell.differences]
    if not compared:
        return ""
    rows = []
    for cell in compared:
        final, area = cell.differences["final_reward"], cell.differences["area"]
        rows.append([
            cell.name, str(area.interval.n), pm(final.interval, 3, signed=True), number(final.adjusted_p_value, 3),
            pm(area.interval, 3, signed=True), number(area.adjusted_p_value, 3),
        ])  # fmt: skip
    header = ["configuration", "pairs", "final reward", "p (Holm)", "area", "p (Holm)"]
    return f"Differences from `{BASELINE}`, seed by seed (paired t test):\n\n" + markdown(header, rows)


def _finding(cells: Sequence[Cell]) -> str:
    compared = [cell for cell in cells if cell.differences]
    found = [
        f"`{cell.name}` ({metric.replace('_', ' ')} {difference.interval.mean:+.3f})"
        for cell in compared
        for metric, difference in cell.differences.items()
        if difference.adjusted_p_value < SIGNIFICANT
    ]
    if not compared:
        return ""
    if not found:
        return (
            f"**No configuration differs significantly from `{BASELINE}`** in final reward or area after Holm's "
            f"correction at {SIGNIFICANT:g}. This doesn't prove that they are equal; see the conclusions."
        )
    return f"Significantly different from `{BASELINE}` after Holm's correction at {SIGNIFICANT:g}: {', '.join(found)}."


def _replay(replays: Sequence[Replayed], how: Mapping[str, Any]) -> str:
    rows = [
        [
            one.name, number(one.first_cosine, 4), number(one.later_cosine, 3), number(one.length_ratio, 2),
            number(one.clip_fraction, 3), number(one.final_reward, 3), number(one.final_kl, 3),
        ]
        for one in replays
    ]  # fmt: skip
    table = markdown(
        ["configuration", "cosine, first batch", "cosine, later batches", "length of gradient", "clipped tokens",
         "reward at the end", "KL at the end"], rows,
    )  # fmt: skip
    what = how["replay"]
    return (
        f"## Replay: all losses on the same stored batches\n\n"
        f"{what['num_batches']} batches of seed {what['seed']}, rolled out with lag {what['lag']} by the policies "
        f"that `{BASELINE}` made; digest of batches and policies `{what['digest'][:16]}`. The first columns compare a "
        f"loss's gradient over the whole batch with that of `{BASELINE}` at the same stored weights. The last two are "
        "of a policy trained by the loss through all batches in order, offline. One seed, so no intervals: the "
        "gradients "
        "are exact, the rewards at the end are an illustration.\n\n"
        f"{table}\n\n![cosines](replay.png)"
    )


def _conclusions(cells: Sequence[Cell]) -> str:
    widths = [cell.differences["area"].interval.half_width for cell in cells if cell.differences]
    widths = sorted(width for width in widths if not math.isnan(width))
    counts = sorted({len(cell.outcomes) for cell in cells})
    if not widths:
        return "## What can be concluded\n\nNothing about differences: they need two seeds or more of each."
    return (
        "## What can and cannot be concluded\n\n"
        f"- With n = {', '.join(map(str, counts))} seeds, the interval of a paired difference in area has a median "
        f"half width of {widths[len(widths) // 2]:.3f} (from {widths[0]:.3f} to {widths[-1]:.3f}): a smaller true "
        "difference would mostly remain undetected here.\n"
        "- The t interval assumes independent and roughly normal seeds. So few seeds can't check this, and rewards "
        "near 1 aren't normal. Seeds vary tasks and sampling, but not the base model or the adapter's first weights.\n"
        "- p-values are corrected within one column at one lag, not across lags and columns.\n"
        "- A paired interval that excludes 0 with an adjusted p above "
        f"{SIGNIFICANT:g} is a hint to test again on fresh seeds, not a finding.\n"
        "- It is one easy task, one tiny model, one learning rate and a short run. It can show that a loss trains, how "
        "it treats stale rollouts here and what it costs; it can't rank losses for another model or task."
    )


def _peer() -> str:
    lines = "\n".join(f"- {difference}" for difference in TRL_DIFFERENCES)
    return (
        "## The peer\n\nTRL's GRPOTrainer ran on-policy with the same base model, LoRA rank, targets and first weights,"
        " tasks in the same order, rewards, number of rollouts, temperature, learning rate, AdamW and gradient clip,"
        f" {TRL_STEPS_PER_VERSION} gradient steps per version, and was measured by the same evaluation. "
        "Not matched:\n\n"
        f"{lines}"
    )


def _configurations(configurations: Sequence[Configuration]) -> str:
    rows = [[f"`{one.name}`", one.meaning, f"`{one.overrides}`" if one.overrides else ""] for one in configurations]
    return "## Configurations\n\n" + markdown(["name", "what it is", "options"], rows)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pm(interval: Interval, digits: int, signed: bool = False) -> str:
    if math.isnan(interval.mean):
        return "–"
    mean = f"{interval.mean:+.{digits}f}" if signed else f"{interval.mean:.{digits}f}"
    return mean if math.isnan(interval.half_width) else f"{mean} ± {interval.half_width:.{digits}f}"


def number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}"
