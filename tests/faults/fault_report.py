"""The result of a campaign as JSON, and as the table of docs/reliability.md."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by tests/faults/soak.py -->", "<!-- end -->"


@dataclass(frozen=True)
class Round:
    """One fault and its effects."""

    fault: str
    what: str
    pid: int
    began: float
    injected: float
    recovered: float
    """When all jobs had ended and rollouts of every model were answered: unix time, as the two above."""
    jobs: tuple[str, ...]
    """Ids of the jobs that were accepted in this round."""
    open_jobs: int
    """How many of them were open when the fault was injected."""
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
    """Broken promises, a sentence each."""


def as_json(campaign: Campaign, command: str) -> dict[str, Any]:
    return {"command": command, "cores": os.cpu_count(), **asdict(campaign)}


def write_report(result: dict[str, Any], page: Path) -> None:
    """Write a result of `as_json` to a JSON file beside the page, and its table into the page."""
    page.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    before, _, rest = page.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}\n{section(result)}\n{END}{after}")


def section(result: dict[str, Any]) -> str:
    """Return the section of the page that shows a result of `as_json`."""
    rounds = result["rounds"]
    kinds = list(dict.fromkeys(round["what"] for round in rounds))
    of_kinds = [[round for round in rounds if round["what"] == kind] for kind in sorted(kinds)]
    head = (
        "| fault | times | jobs | lost | doubled | failed | longest silence | longest rollout outage |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    rows = [_row(of_kind[0]["what"], of_kind) for of_kind in of_kinds]
    summary = (
        f"On {result['cores']} cores. Faults: {len(rounds)}, jobs: {result['num_jobs']}, versions: "
        f"{result['num_versions']}, answered rollouts: {result['num_rollouts']}, broken promises: "
        + (f"{len(result['findings'])}, listed in the JSON file beside this page." if result["findings"] else "none.")
    )
    return "\n".join([f"Made by `{result['command']}`:", "", head, *rows, _row("**all**", rounds), "", summary])


def _row(name: str, rounds: Sequence[dict[str, Any]]) -> str:
    sums = [sum(round[column] for round in rounds) for column in ("lost", "doubled", "failed")]
    longest = [max(round[column] for round in rounds) for column in ("longest_silence_s", "longest_outage_s")]
    counts = [len(rounds), sum(len(round["jobs"]) for round in rounds), *sums]
    return f"| {name} | {' | '.join(map(str, counts))} | {' | '.join(f'{seconds:.0f} s' for seconds in longest)} |"
