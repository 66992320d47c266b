"""Scale: measured costs of Tandem's parts, and a simulation of services with 1, 8 and 64 engines.

    .venv/bin/python benchmarks/scaling.py measure            # parts, in this process: 2 minutes
    .venv/bin/python benchmarks/scaling.py measure-service    # a service of one engine and one learner: 5 minutes
    .venv/bin/python benchmarks/scaling.py measure-learners   # one and two learners: 2 minutes
    .venv/bin/python benchmarks/scaling.py simulate           # from the measurements: 3 minutes; validates, plots

The first three write benchmarks/results/scaling_measured.json, the last scaling.json and scaling_*.png beside it, and
the tables of docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from queueing.page import shown, write_tables
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
console = Console(highlight=False)


def tell(what: str) -> None:
    console.print(f"{time.strftime('%T')}  {what}")


def measure(results: Path, part: str) -> None:
    """Measure, and keep the results of parts that succeeded before a failure."""
    file = results / "scaling_measured.json"
    measured = json.loads(file.read_text()) if file.exists() else {}
    found: dict[str, Any] = {}
    try:
        if part == "service":
            from queueing.measure_service import measure_service

            measure_service(found, tell)
        elif part == "learners":
            from queueing.measure_learners import measure_learners

            measure_learners(found, tell)
        else:
            from queueing.measure_parts import measure_parts

            with tempfile.TemporaryDirectory() as directory:
                measure_parts(found, Path(directory), tell)
    finally:
        file.write_text(json.dumps(measured | {part: found}, indent=1) + "\n")


def simulate(results: Path) -> None:
    from queueing import plots, study
    from queueing.measured import costs_of, table_of
    from queueing.tables import tables_of
    from queueing.validation import validate

    measured = json.loads((results / "scaling_measured.json").read_text())
    costs = costs_of(measured)
    large = study.assumed_large(costs)
    outcome: dict[str, Any] = {
        "constants": table_of(measured),
        "costs": {"tiny": asdict(costs), "large": asdict(large)},
        "validation": validate(costs, measured),
    }
    for name, of_model, fleet, load in (
        ("tiny", costs, study.TINY_FLEET, study.TINY_LOAD),
        ("large", large, study.LARGE_FLEET, study.LARGE_LOAD),
    ):
        outcome[name] = study.study(of_model, fleet, load, tell)
    outcome["large"]["sensitivity"] = study.sensitivity(large, study.LARGE_FLEET, study.LARGE_LOAD, tell)
    outcome = rounded(outcome)  # so that the page follows from the file
    (results / "scaling.json").write_text(json.dumps(outcome, indent=1) + "\n")
    plots.plot_all(outcome, results)
    tables = tables_of(outcome)
    for name, rows in tables.items():
        show(name, rows)
    if results == RESULTS:
        write_tables(PAGE, tables)


def show(title: str, rows: list[dict[str, Any]]) -> None:
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*map(shown, row.values()))
    console.print(table)


def rounded(value: Any) -> Any:
    """Round floats to five significant digits, more than the accuracy of any result."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [rounded(item) for item in value]
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "measure-service", "measure-learners", "simulate"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="directory to read and write")
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    if options.what == "simulate":
        simulate(options.results)
    else:
        measure(options.results, {"measure": "parts"}.get(options.what, options.what.removeprefix("measure-")))


if __name__ == "__main__":
    main()
