"""The report over several tasks: where a loss helps on all of them, and how Tandem learns beside its peer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loss_comparison.analysis import Difference, Interval, paired_difference
from loss_comparison.configurations import BASELINE, COUNTERPARTS, TRL_STEPS_PER_VERSION
from loss_comparison.report import SIGNIFICANT, markdown, number, pm

Cells = Mapping[tuple[str, int], Mapping[str, Any]]
"""By configuration and lag, as a task's results.json has them."""


def overview(results: Mapping[str, Path]) -> str:
    """Return the report in Markdown. `results` are the results.json of each task; missing ones are left out."""
    tasks = {task: _cells(json.loads(path.read_bytes())) for task, path in results.items() if path.exists()}
    links = ", ".join(f"[{task}]({task}/report.md)" for task in tasks)
    parts = ["# Loss functions compared on several tasks", f"Each task has a report of its own: {links}."]
    parts += [_peers(tasks)]
    for lag in sorted({lag for cells in tasks.values() for _, lag in cells}):
        parts += [_differences(tasks, lag)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(results: Mapping[str, Any]) -> Cells:
    return {(cell["name"], cell["lag"]): cell for cell in results["cells"]}


def _peers(tasks: Mapping[str, Cells]) -> str:
    rows = [
        [task, own, peer, *_values(cells[own, 0], cells[peer, 0]), *_compared(cells[own, 0], cells[peer, 0])]
        for peer, own in COUNTERPARTS.items()
        for task, cells in tasks.items()
        if (peer, 0) in cells and (own, 0) in cells
    ]
    if not rows:
        return ""
    header = ["task", "Tandem", "TRL", "final reward, Tandem", "final reward, TRL", "steps per version, Tandem",
              "pairs", "difference", "p", "difference in area", "p"]  # fmt: skip
    return (
        "## Beside the peer\n\nOn-policy, seed by seed (paired t test, unadjusted); a positive difference means that "
        "Tandem is ahead. The runs of a seed share their first rollouts. TRL takes "
        f"{TRL_STEPS_PER_VERSION} gradient steps per version. Tandem takes one per packed row, and its rows leave out "
        "groups without a signal and repeat no prompt, so where prompts are short it takes fewer steps, and learns "
        "less per version; shorter rows make it as many.\n\n" + markdown(header, rows)
    )


def _values(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    rewards = [pm(Interval(**cell["intervals"]["final_reward"]), 3) for cell in (ours, theirs)]
    return [*rewards, number(ours["intervals"]["num_steps"]["mean"], 1)]


def _compared(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return the number of pairs, then difference and p of final reward and area."""
    found = [_difference(ours["outcomes"], theirs["outcomes"], metric) for metric in ("final_reward", "area")]
    shown = [text for one in found for text in (pm(one.interval, 3, signed=True), number(one.p_value, 3))]
    return [str(found[0].interval.n), *shown]


def _difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], metric: str) -> Difference:
    """Compare by seed."""

    def of(outcomes: Mapping[str, Any]) -> dict[int, float]:
        return {int(seed): outcome[metric] for seed, outcome in outcomes.items()}

    return paired_difference(of(ours), of(theirs))


def _differences(tasks: Mapping[str, Cells], lag: int) -> str:
    names = list(dict.fromkeys(name for cells in tasks.values() for name, of in cells if of == lag))
    rows = [[name, *(_cell(cells.get((name, lag))) for cells in tasks.values())] for name in names]
    title = "## On-policy" if lag == 0 else f"## With a lag of {lag} versions"
    return (
        f"{title}\n\nFinal reward of `{BASELINE}`, and the others' difference from it; bold if significant at "
        f"{SIGNIFICANT:g} after Holm's correction within the task.\n\n" + markdown(["configuration", *tasks], rows)
    )


def _cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "–"
    found: Mapping[str, Any] = cell["differences_from_baseline"]
    if not found:
        return pm(Interval(**cell["intervals"]["final_reward"]), 3)
    difference = found["final_reward"]
    text = pm(Interval(**difference["interval"]), 3, signed=True)
    return f"**{text}**" if difference["adjusted_p_value"] < SIGNIFICANT else text
