"""The process that runs jobs on a cluster of several nodes. The test stays outside and kills nodes."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from watched_run import Run

from tandem.cluster.learners.group import LearnerGroup

STARTED = "started.json"  # the nodes of the ranks, written after the second gradient step of the first attempt
HOLD = "hold"  # while its directory has this file, the job waits there


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job that succeeded."""

    digest: str
    """The digest of the version that it made."""
    nodes: list[str]
    """The ids of the nodes where the learners ran at the end, by rank."""
    broken_off: list[str]
    """Why earlier attempts ended."""


def join() -> None:
    """Connect this process to the cluster of RAY_ADDRESS."""
    ray.init(logging_level="ERROR", log_to_driver=False)


def run_job(directory: Path, learners: dict[str, Any]) -> Outcome:
    """Run the accepted job of a directory. `learners` are options of LearnersConfig."""
    nodes: list[str] = []
    causes = Causes()
    logging.getLogger("tandem.cluster.jobs.coordinator").addHandler(causes)

    def at_step(run: Run) -> None:
        aside = directory / f"{STARTED}.aside"
        aside.write_text(json.dumps(nodes_of(run)))
        aside.rename(directory / STARTED)
        while (directory / HOLD).exists():
            time.sleep(0.05)

    def save(*arguments: Any) -> str:
        nodes.extend(nodes_of(run))
        return LearnerGroup.save(run.learners, *arguments)

    run = Run(directory, learners, at_step)
    run.learners.save = save
    job, digest = run.to_the_end()
    run.learners.stop()
    assert job.attempt == 1 + len(causes.messages), causes.messages
    return Outcome(digest, nodes, causes.messages)


class Causes(logging.Handler):
    """Keeps the coordinator's messages about attempts that failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def nodes_of(run: Run) -> list[str]:
    def node_id(_: Any) -> str:
        return ray.get_runtime_context().get_node_id()

    return ray.get([worker.__ray_call__.remote(node_id) for worker in run.learners.workers], timeout=60)
