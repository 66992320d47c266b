"""A run against a scripted service, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_service import Job, ScriptedService

from tandem.runs.directory import RunDirectory
from tandem.runs.reporting.report import Progress
from tandem.runs.run import begin_or_resume, plan, run

ENVIRONMENT = Path(__file__).parent / "counting_environment.py"


class Recording:
    """A report that records its calls."""

    def __init__(self) -> None:
        self.progress, self.said, self.rows = Progress(), [], []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def row(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


@pytest.fixture
def service():
    with ScriptedService() as service:
        yield service


@pytest.fixture
def hold_jobs(service, tmp_path) -> Callable[[int, int], None]:
    """A function that holds each job of `do_run` until the `ahead` batches after its own are rolled out.

    So the version that samples a batch doesn't depend on speed.
    """

    def hold(ahead: int, jobs: int) -> None:
        def is_held(job: Job) -> bool:
            batches = range(job.trained_on, min(job.trained_on + ahead + 1, jobs))
            stored = [tmp_path / "run" / "batches" / f"{batch:06d}.groups.json.zst" for batch in batches]
            return not all(file.exists() for file in stored)

        service.holds_job = is_held

    return hold


@pytest.fixture
def task_file(tmp_path) -> Callable[..., Path]:
    """A function that writes a small task file with changed sections: task_file(training={"jobs": 3})."""

    def write(environment: str = "Numbered", options: dict[str, Any] | None = None, **changes: dict[str, Any]) -> Path:
        task = {
            "name": "test",
            "seed": 5,
            "environment": {"class": f"{ENVIRONMENT}:{environment}", "options": options or {}},
            "rollouts": {"groups_per_job": 2, "group_size": 2, "timeout_s": 600, "max_failed_fraction": 0},
            "training": {"jobs": 4, "max_policy_lag": 1},
            "service": {"patience_s": 600},
        }
        for section, fields in changes.items():
            task[section] = {**task.get(section, {}), **fields} if isinstance(fields, dict) else fields
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump(task))
        return path

    return write


@pytest.fixture
def do_run(service, tmp_path) -> Callable[..., Recording]:
    """A function that runs a task file to its end. Calls with one directory resume the run."""

    def do(path: Path, name: str = "run") -> Recording:
        report = Recording()
        planned = plan(path)
        with RunDirectory(tmp_path / name) as directory:
            report.said += begin_or_resume(directory, planned.task)
            asyncio.run(asyncio.wait_for(run(planned, directory, service.url, "tdm_test", report), 900))
        return report

    return do
