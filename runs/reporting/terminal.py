"""Output of a run: a table and a status line in a terminal, a line per version elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Group, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Column, Table
from rich.text import Text

from tandem.runs.ledger import Ledger, Row
from tandem.runs.reporting.console import PlainConsole
from tandem.runs.reporting.report import Progress
from tandem.runs.reporting.scalars import ScalarWriter

SHOWN_ROWS = 20
BAR_WIDTH = 16


class TerminalReport:
    """with TerminalReport(console, ledger, writer) as report: ... It also writes each row to TensorBoard."""

    def __init__(self, console: PlainConsole, ledger: Ledger, writer: ScalarWriter):
        self.progress = Progress()
        self._console, self._ledger, self._writer = console, ledger, writer
        self._began = time.monotonic()
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)
        self._is_live = console.is_terminal

    def __enter__(self) -> TerminalReport:
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_live:
            self._live.stop()
            self._console.print(_table(self._ledger))
        self._writer.close()

    def say(self, sentence: str) -> None:
        self._console.print(Text.assemble(f"{self._clock()} ", (sentence, "yellow")))

    def row(self, row: Row) -> None:
        self._writer.write(row)
        if not self._is_live:
            self._console.print(self._clock(), line(row, self.progress.num_jobs))

    def _clock(self) -> str:
        return time.strftime("%H:%M:%S")

    def _render(self) -> RenderableType:
        elapsed = int(time.monotonic() - self._began)
        status = Text.assemble((f"{elapsed // 60}:{elapsed % 60:02d}  ", "dim"), now(self.progress))
        return Group(_table(self._ledger), Spinner("dots", status))


def line(row: Row, num_jobs: int) -> str:
    """Return a row of the ledger as one line, for logs."""
    if row["kind"] == "evaluation":
        return (
            f"evaluation of version {row['version']}: reward {row['eval/reward/mean']:.3f} ± "
            f"{row['eval/reward/std']:.3f} ({row['eval/rollouts/num']} rollouts{_failed(row, 'eval/')}, "
            f"{row['seconds/evaluation']:.1f} s)"
        )
    parts = [
        f"version {row['version']} (job {row['batch'] + 1}/{num_jobs})",
        f"reward {row['reward/mean']:.3f} ± {row['reward/std']:.3f}",
        f"lag {row['policy_lag/mean']:.1f} (max {row['policy_lag/max']:g})",
        *(f"{label} {row[name]:.4g}" for label, name in LOSSES.items() if name in row),
        f"{row['rollouts/num']} rollouts{_failed(row)}{_not_trained(row)}",
        f"{row['tokens/completion']} tokens{_inexact(row)}",
        f"rollouts {row['seconds/rollouts']:.1f} s, training {row['seconds/training']:.1f} s, "
        f"learner waited {row['seconds/waiting_for_rollouts']:.1f} s",
    ]
    return " · ".join(parts)


LOSSES = {"loss": "loss/train", "entropy": "loss/entropy", "grad norm": "loss/grad_norm", "KL": "loss/kl_policy_ref"}


def now(progress: Progress) -> str:
    """Return the current activity as one line."""
    parts = [f"version {progress.version}"]
    if progress.rolling_batch is not None and progress.num_groups_done < progress.num_groups:
        done = f"{progress.num_groups_done}/{progress.num_groups} groups"
        parts.append(f"rolling out batch {progress.rolling_batch + 1}: {done}")
    if progress.training_batch is not None:
        done = f"{progress.num_steps_done}/{progress.num_steps or '?'} steps"
        parts.append(f"training job {progress.training_batch + 1}/{progress.num_jobs}: {done}")
    if progress.evaluating is not None:
        parts.append(f"evaluating version {progress.evaluating}")
    return " · ".join(parts)


def _failed(row: Row, prefix: str = "") -> str:
    if not row.get(f"{prefix}rollouts/failed"):
        return ""
    stem = f"{prefix}rollouts/failed/"
    by_cause = ", ".join(f"{name.removeprefix(stem)} {row[name]}" for name in row if name.startswith(stem))
    return f", {row[f'{prefix}rollouts/failed']} failed: {by_cause}"


def _inexact(row: Row) -> str:
    """Return which of the tokens can't train, or aren't known exactly; nothing if there are none."""
    counts = {name: row.get(f"tokens/{name}", 0) for name in ("untrainable", "retokenised")}
    return "".join(f", {number} {name}" for name, number in counts.items() if number)


def _not_trained(row: Row) -> str:
    stem = "not_trained/"
    reasons = {name.removeprefix(stem): row[name] for name in row if name.startswith(stem)}
    if not reasons:
        return ""
    by_reason = ", ".join(f"{reason} {number}" for reason, number in reasons.items())
    return f", {sum(reasons.values())} not trained: {by_reason}"


def _table(ledger: Ledger) -> Table:
    """Return the newest rows of training, each with the evaluation of its version."""
    bar = Column("", min_width=BAR_WIDTH, no_wrap=True)
    table = Table(
        "version", "reward", bar, "eval", "lag", "loss", "entropy", "rollouts s", "training s", "waiting s", "failed"
    )
    evaluations = {row["version"]: row for row in ledger.of("evaluation")}
    rows = ledger.of("training")
    if rows and (first := evaluations.get(rows[0]["version"] - 1)) and len(rows) < SHOWN_ROWS:
        table.add_row(str(first["version"]), "", "", f"{first['eval/reward/mean']:.3f}", *[""] * 7)
    for row in rows[-SHOWN_ROWS:]:
        evaluation = evaluations.get(row["version"])
        low, high = min(0.0, row["reward/min"]), max(1.0, row["reward/max"])
        table.add_row(
            str(row["version"]),
            f"{row['reward/mean']:.3f}",
            "█" * round(BAR_WIDTH * (row["reward/mean"] - low) / (high - low)),
            f"{evaluation['eval/reward/mean']:.3f}" if evaluation else "",
            f"{row['policy_lag/mean']:.1f}",
            *(f"{row[name]:.3f}" if name in row else "" for name in ("loss/train", "loss/entropy")),
            *(f"{row[f'seconds/{name}']:.1f}" for name in ("rollouts", "training", "waiting_for_rollouts")),
            str(row["rollouts/failed"] or ""),
        )
    return table
