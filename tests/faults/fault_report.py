"""The result of a campaign as JSON, and as the table of docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by tests/faults/soak.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Round:
    """One fault and what it did."""

    fault: str
    what: str
    pid: int
    began: float
    injected: float
    recovered: float
    """When all jobs had ended and every model's rollouts were answered; unix time, as the two above."""
    jobs: tuple[str, ...]
    """Ids of the jobs that were accepted in this round."""
    open_jobs: int
    """How many of them waited or ran when the fault was injected."""
    longest_silence_s: float = 0.0
    longest_outage_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    failed: int = 0


@dataclass(frozen=True)
class Campaign:
    rounds: tuple[Round, ...]
    num_jobs: int
    num_versions: int
    num_rollouts: int
    findings: tuple[str, ...]
    """What broke a promise, a sentence each."""


def write_report(campaign: Campaign, seed: int, command: str, page: Path) -> None:
    """Writes the results beside the page, as JSON, and their table into it."""
    result = {"command": command, "seed": seed, **asdict(campaign)}
    page.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{section(result)}\n{END}{after}")


def section(result: dict[str, Any]) -> str:
    """The part of the page that the results make, from what `write_report` puts into the JSON file."""
    rounds = result["rounds"]
    kinds = list(dict.fromkeys(round["what"] for round in rounds))
    of_kinds = [[round for round in rounds if round["what"] == kind] for kind in sorted(kinds)]
    head = (
        "| fault | times | jobs | lost | doubled | failed | longest silence | longest rollout outage |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    rows = [_row(of_kind[0]["what"], of_kind) for of_kind in of_kinds]
    summary = (
        f"{len(rounds)} faults, {result['num_jobs']} jobs, {result['num_versions']} versions, "
        f"{result['num_rollouts']} answered rollouts. "
        + (f"{len(result['findings'])} findings, see the JSON file." if result["findings"] else "No findings.")
    )
    return "\n".join([f"Made by `{result['command']}`:", "", head, *rows, _row("**all**", rounds), "", summary])


def _row(name: str, rounds: Sequence[dict[str, Any]]) -> str:
    sums = [sum(round[column] for round in rounds) for column in ("lost", "doubled", "failed")]
    longest = [max(round[column] for round in rounds) for column in ("longest_silence_s", "longest_outage_s")]
    counts = [len(rounds), sum(len(round["jobs"]) for round in rounds), *sums]
    return f"| {name} | {' | '.join(map(str, counts))} | {' | '.join(f'{seconds:.0f} s' for seconds in longest)} |"
