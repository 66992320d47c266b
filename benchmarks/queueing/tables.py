"""The results of the simulation as tables for the page."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]
MODELS = ("tiny", "large")


def tables_of(outcome: Record) -> dict[str, list[Record]]:
    return {
        "constants": outcome["constants"],
        "validation": validation(outcome["validation"]),
        "rollouts": rollouts(outcome),
        "runs": runs(outcome),
        "stages": stages(outcome),
        "publication": publication(outcome["large"]["publication"]),
        "remedies": remedies(outcome),
        "sensitivity": sensitivity(outcome["large"]["sensitivity"]),
    }


def validation(rows: list[Record]) -> list[Record]:
    return [
        {"load": r["what"], "unit": r["unit"], "measured": r["measured"], "slowdown": f"{r['slowdown']:.1f}",
         "predicted": r["predicted, slowed"], "error": f"{r['error']:+.0%}",
         "predicted, dedicated cores": r["predicted, own cores"]}
        for r in rows
    ]  # fmt: skip


def rollouts(outcome: Record) -> list[Record]:
    """Return the highest rate of each size, over all numbers of open groups."""

    def most(name: str, engines: int, replicas: int) -> Record:
        sizes = [r for r in outcome[name]["rollouts"]
                 if (r["fleet"]["engines"], r["fleet"]["api_replicas"]) == (engines, replicas)]  # fmt: skip
        return max(sizes, key=lambda r: r["rollouts_per_s"])

    rows = []
    for engines in (1, 8, 64):
        row: Record = {"engines": engines}
        for name in MODELS:
            for replicas in (1, 8):
                best = most(name, engines, replicas)
                row[f"{name}, {replicas} API"] = f"{_number(best['rollouts_per_s'])} ({best['bottleneck']})"
        rows.append(row)
    return rows


def runs(outcome: Record) -> list[Record]:
    rows = []
    for engines in (1, 8, 64):
        for name in MODELS:
            sizes = [r for r in outcome[name]["runs"] if r["fleet"]["engines"] == engines]
            rows.append({"engines": engines, "model": name, **{
                f"{r['fleet']['learners']} L": f"{_number(r['jobs_per_s'])} {SHORT[r['bottleneck']]}" for r in sizes
            }})  # fmt: skip
    return rows


SHORT = {"engines": "e", "API": "a", "proxy": "x", "preparation": "p", "checks": "k",
         "store": "s", "engine processes": "v", "learners": "l"}  # fmt: skip


def stages(outcome: Record) -> list[Record]:
    rows = []
    for name in MODELS:
        for r in outcome[name]["runs"]:
            if (r["fleet"]["engines"], r["fleet"]["learners"]) in ((64, 1), (64, 8), (64, 64)):
                of = r["stages_s"]
                rows.append({"model": name, "learners": r["fleet"]["learners"],
                             **{stage: float(of[stage]) for stage in STAGES}})  # fmt: skip
    return rows


STAGES = ("queued", "claim", "prepare", "turn", "load", "steps", "checkpoint", "publish")


def publication(records: list[Record]) -> list[Record]:
    rows = []
    for bandwidth in (1.25e9, 5e9, None):
        row: Record = {"artifact store bandwidth": "no limit" if bandwidth is None
                       else f"{bandwidth * 8 / 1e9:g} Gbit/s"}  # fmt: skip
        for r in records:
            if r["artifact_bytes_per_s"] == bandwidth:
                row[f"{r['engines']} engines"] = f"{r['p50_s']:.2g}, {r['p99_s']:.2g} s"
        rows.append(row)
    return rows


def remedies(outcome: Record) -> list[Record]:
    """Return jobs/s with each change alone, and with it and all changes before it."""
    rows: dict[str, Record] = {}
    for name in MODELS:
        for r in outcome[name]["remedies"]:
            change = r["change"].removeprefix("+ ")
            row = rows.setdefault(change.removesuffix(", alone"), {"change": change})
            if change.endswith(", alone"):
                row[f"{name}, alone"] = _number(r["jobs_per_s"])
            else:
                row |= {f"{name}, alone": "", f"{name}, cumulative": _number(r["jobs_per_s"]),
                        f"{name}, then busiest": r["bottleneck"]}  # fmt: skip
    return list(rows.values())


def sensitivity(records: list[Record]) -> list[Record]:
    base, *others = records
    rows = []
    for half in (r for r in others if r["factor"] == 0.5):
        [double] = [r for r in others if r["factor"] == 2 and r["assumption"] == half["assumption"]]
        rows.append({"assumption": half["assumption"], **{
            column: f"{r['jobs_per_s'] / base['jobs_per_s']:.2f} ({r['bottleneck']})"
            for column, r in (("jobs/s when halved", half), ("jobs/s when doubled", double))
        }})  # fmt: skip
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
