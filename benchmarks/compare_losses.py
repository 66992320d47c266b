"""Compare the loss functions on a task: the same tasks, rollouts per version and seeds, with nothing else changed.

    .venv/bin/python benchmarks/compare_losses.py --output demo-results/compare_losses
    .venv/bin/python benchmarks/compare_losses.py --tasks largest yes-no-maybe calculator
    ray job submit --working-dir . -- python benchmarks/compare_losses.py --output /a/shared/folder

Each configuration of loss_comparison/configurations.py is trained with several seeds, on-policy and with a lag. TRL's
GRPOTrainer trains the same task, and every loss runs on the same stored batches (replay). The results are
OUTPUT/report.md, results.json and plots. Finished runs are kept in OUTPUT/runs, so an interrupted command resumes;
`--report-only` writes the report of the finished runs. With `--tasks`, each task has a directory of its own in OUTPUT,
and OUTPUT/report.md compares them.

In a submitted job, runs are tasks of that Ray cluster. Otherwise they run in this process, unless `--ray` starts a
local Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from loss_comparison import configurations as known
from loss_comparison.overview import overview
from loss_comparison.plots import plot_areas, plot_curves, plot_replay
from loss_comparison.report import render
from loss_comparison.results import Results, write_atomically
from loss_comparison.settings import TASKS, RunRequest, Settings
from loss_comparison.summary import cells, largest_sampler_difference, replayed
from rich.console import Console

if TYPE_CHECKING:  # slow to import, and not needed for `--report-only`
    from loss_comparison.execution import Failures
    from loss_comparison.replay import StoredBatches

PACKAGE = Path(__file__).parent / "loss_comparison"
console = Console(highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    failures: list[Failures] = []
    for task in options.tasks or [None]:
        of_task = argparse.Namespace(**vars(options))
        if task is not None:
            console.print(f"Task {task}:")
            of_task.output = options.output / task
        failures += compare(of_task, settings_of(options, task))
    if options.tasks:
        text = overview({task: options.output / task / "results.json" for task in TASKS})  # earlier ones too
        write_atomically(options.output / "report.md", text.encode())
    if failures:
        sys.exit(
            f"{sum(map(len, failures))} runs failed and are missing from the tables. The same command retries them.\n"
            + "\n".join(map(str, failures))
        )


def settings_of(options: argparse.Namespace, task: str | None) -> Settings:
    """Return the settings of a task, in which options of the command line replace those of the task."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    given = {name: value for name in defaults if (value := getattr(options, name)) != defaults[name]}
    return Settings(**(TASKS[task] if task else {}) | given)


def compare(options: argparse.Namespace, settings: Settings) -> list[Failures]:
    """Make the missing runs of a task and write its report. Return the failures, if any."""
    chosen = choose(options)
    results = Results(options.output / "runs", {"commit": commit(), "date": time.strftime("%Y-%m-%d")})
    stored = replays(options, settings, results)
    planned = requests(options, settings, chosen, stored)
    missing = [request for request in planned if results.get(request) is None]
    console.print(f"{len(planned)} runs, of which {len(planned) - len(missing)} are finished already.")
    failures = None
    if missing and not options.report_only:
        failures = make(options, missing, stored, results)
    report(options, settings, chosen, planned, stored, results)
    return [failures] if failures else []


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", type=Path, default=Path("demo-results/compare_losses"))
    add("--tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=f"named tasks: {', '.join(TASKS)}")
    add("--configurations", nargs="+", metavar="NAME", help="default: all, including TRL's")
    add("--seeds", type=int, default=5, help="runs of each configuration and lag")
    add("--lags", type=int, nargs="+", default=[0, 3], help="versions from the sampling to the trained one")
    add("--replay", action=argparse.BooleanOptionalAction, default=True, help="also run the losses on stored batches")
    add("--threshold", type=float, default=0.8, help="reward up to which steps are counted")
    add("--report-only", action="store_true", help="start no run")
    add("--ray", action=argparse.BooleanOptionalAction, default="RAY_ADDRESS" in os.environ, help="run as Ray tasks")
    add("--cpus", type=float, default=1, help="Ray CPUs of a run")
    add("--gpus", type=float, default=0, help="Ray GPUs of a run")
    add("--idle-timeout", type=float, default=3600, metavar="S", help="give up if no Ray task ends for this long")
    for name, field in Settings.model_fields.items():
        convert = json.loads if name == "environment_options" else type(field.default)
        add("--" + name.replace("_", "-"), type=convert, default=field.default, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or min(options.lags) < 0:
        parser.error("--seeds must be 1 or more, and lags 0 or more.")
    if options.tasks and (options.environment != parser.get_default("environment") or options.environment_options):
        parser.error("Use either --tasks or --environment.")
    return options


def choose(options: argparse.Namespace) -> list[known.Configuration]:
    """Return the requested configurations, and always the baseline, which the others are compared with."""
    every = [*known.CONFIGURATIONS, *known.TRL_CONFIGURATIONS]
    if options.configurations is None:
        return every
    wanted = {known.configuration(name).name for name in options.configurations} | {known.BASELINE}
    return [found for found in every if found.name in wanted]


def replays(options: argparse.Namespace, settings: Settings, results: Results) -> dict[str, StoredBatches]:
    """Return the stored batches by digest: those of the first seed and the longest lag, made if missing."""
    if not options.replay:
        return {}
    from loss_comparison.replay import stored_batches

    with console.status("Stored batches for the replay") as status:
        stored = stored_batches(results.directory, settings, 0, max(options.lags), status.update)
    return {stored.digest: stored}


def requests(
    options: argparse.Namespace,
    settings: Settings,
    chosen: Sequence[known.Configuration],
    stored: dict[str, StoredBatches],
) -> list[RunRequest]:
    """Plan seed by seed, so that an interrupted comparison has as many seeds of each configuration as possible."""
    own = [found for found in chosen if found in known.CONFIGURATIONS]
    peers = [found for found in chosen if found in known.TRL_CONFIGURATIONS]
    planned: list[RunRequest] = []
    for seed in range(options.seeds):
        planned += [
            RunRequest.of("training", found, seed, lag, settings) for lag in sorted(set(options.lags)) for found in own
        ]
        if 0 in options.lags:  # GRPOTrainer samples with the policy it trains
            planned += [RunRequest.of("trl", found, seed, 0, settings) for found in peers]
        if seed == 0:
            planned += [
                RunRequest.of("replay", found, 0, max(options.lags), settings, replay_digest=digest)
                for digest in stored
                for found in own
            ]
    return planned


def make(
    options: argparse.Namespace, missing: Sequence[RunRequest], stored: dict[str, StoredBatches], results: Results
) -> Failures:
    from loss_comparison.execution import ray_connection, run_here, run_on_ray

    if not options.ray:
        return run_here(missing, stored, results, console)
    with ray_connection(PACKAGE, options.output / "ray-token"):
        return run_on_ray(missing, stored, results, console, options.cpus, options.gpus, options.idle_timeout)


def report(
    options: argparse.Namespace,
    settings: Settings,
    chosen: Sequence[known.Configuration],
    planned: Sequence[RunRequest],
    stored: dict[str, StoredBatches],
    results: Results,
) -> None:
    made = {request.label: result for request in planned if (result := results.get(request)) is not None}
    every = list(made.values())
    names = [found.name for found in chosen]
    table, replays = cells(every, names, options.threshold), replayed(every, names)
    how = {
        "command": shlex.join(["python", *(word for word in sys.argv if word != "--report-only")]),
        "date": made_by(every, "date"),
        "commit": made_by(every, "commit"),
        "machine": machine(),
        "versions": ", ".join(f"{k} {v}" for k, v in software(every).items()),
        "planned": len(planned),
        "missing": [request.label for request in planned if request.label not in made],
        "sampler_difference": largest_sampler_difference(every),
        "replay": {"seed": 0, "lag": max(options.lags)} | _stored_summary(stored),
    }
    text = render(table, replays, chosen, settings, options.threshold, how)
    write_atomically(options.output / "report.md", text.encode())
    summary = {
        "how": how, "settings": settings.model_dump(mode="json"), "threshold": options.threshold,
        "cells": [cell.record() for cell in table], "replay": [asdict(one) for one in replays],
    }  # fmt: skip
    write_atomically(options.output / "results.json", json.dumps(summary, indent=1).encode())
    if table:
        plot_curves(table, options.threshold, options.output / "curves.png")
        plot_areas(table, options.output / "areas.png")
    if any(one.name != known.BASELINE for one in replays):
        plot_replay(replays, options.output / "replay.png")
    console.print(f"{len(made)} of {len(planned)} runs are in {options.output / 'report.md'}")


def _stored_summary(stored: dict[str, StoredBatches]) -> dict[str, Any]:
    return {
        key: value
        for digest, s in stored.items()
        for key, value in (("digest", digest), ("num_batches", len(s.batches)))
    }


def commit() -> str:
    """Return the commit, and add "with changes" if a loaded source file differs from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()

    try:
        top = git("rev-parse", "--show-toplevel")
        files = [file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
        changed = set(git("status", "--porcelain", "--no-renames", "-z", "--", ":/").split("\0"))
        own = {os.path.relpath(os.path.realpath(file), top) for file in files}  # tandem/ holds links
        return git("rev-parse", "--short", "HEAD") + (" with changes" if own & {line[3:] for line in changed} else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def made_by(made: Sequence[dict[str, Any]], what: str) -> str:
    return ", ".join(sorted({result["made_by"][what] for result in made})) or "none yet"


def software(made: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {name: version for result in made for name, version in result["versions"].items()}


if __name__ == "__main__":
    main()
