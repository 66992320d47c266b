"""`tandem train TASK.yaml`: a run with its service, its progress report and its exit status."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from pathlib import Path

from tandem.cli import callers_directory
from tandem.cli.run_service import RunService, run_service
from tandem.cli.startup import startup
from tandem.cli.stopping import StopSignals
from tandem.cli.surroundings import UnusableError
from tandem.client import SettingsError
from tandem.cluster.config import TandemConfig
from tandem.runs.config import TaskConfig
from tandem.runs.directory import RunDirectory
from tandem.runs.errors import RunError, TaskFileError
from tandem.runs.event_loop import run_with_short_end
from tandem.runs.outcome import say_what_trained
from tandem.runs.reporting.console import PlainConsole
from tandem.runs.reporting.plot import plot_rewards
from tandem.runs.reporting.scalars import ScalarWriter
from tandem.runs.reporting.terminal import TerminalReport
from tandem.runs.run import Plan, begin_or_resume, is_finished, plan, run

LOOK_S = 0.2
CHECK_PERIOD_S = 5.0


def train(task_file: Path, verbose: bool, out: PlainConsole, err: PlainConsole) -> int:
    """Run the command and return its exit status: 0; 1 if the run failed or trained nothing; 2 for a wrong file or
    setting; 128 + a signal that ended it."""
    callers_directory.put_back_last()
    try:
        planned = plan(task_file)
        config = _config(planned.task, task_file)
        with RunDirectory(_directory(planned.task, config)) as directory:
            try:
                return _train(planned, config, directory, verbose, out, err)
            finally:
                _plot(planned.task, directory)
    except (TaskFileError, SettingsError, UnusableError) as error:
        err.error(str(error))
        return 2
    except RunError as error:
        err.error(str(error))
        return 1


def _train(
    planned: Plan, config: TandemConfig, directory: RunDirectory, verbose: bool, out: PlainConsole, err: PlainConsole
) -> int:
    task = planned.task
    for sentence in begin_or_resume(directory, task):
        out.print(sentence)
    if is_finished(directory, task):
        out.print(f"The run has trained all its {task.training.jobs} jobs. Raise training.jobs to continue it.")
        return _ended(directory, out)
    url = task.service.url or os.environ.get("TANDEM_URL")
    signal_number: int | None = None
    try:
        with startup(err) as start:
            with run_service(url, config, task.model.entity, directory, start, verbose) as service:
                out.print(f"{task.name}: {service.url}, metrics in {directory.path}")
                writer = ScalarWriter(directory.path / "tensorboard", directory.ledger.rows)
                with TerminalReport(out, directory.ledger, writer) as report:
                    work = run(planned, directory, service.url, service.key, report)
                    if not run_with_short_end(_until_stopped(work, start.stop, service)):
                        signal_number = start.stop.signal or signal.SIGINT
    finally:
        _say_how_far(directory, task, out)
    return _ended(directory, out) if signal_number is None else 128 + signal_number


def _ended(directory: RunDirectory, out: PlainConsole) -> int:
    """Return the status of a complete run. Raises NothingTrainedError."""
    if sentence := say_what_trained(directory):
        out.print(sentence)
    return 0


async def _until_stopped(work: Coroutine[None, None, None], stop: StopSignals, service: RunService) -> bool:
    """Return True if the work was done. A signal cancels it and shuts down the service; an error of the service's check
    ends it too."""
    task = asyncio.ensure_future(work)
    checked = time.monotonic()
    while not task.done():
        await asyncio.wait([task], timeout=LOOK_S)
        if stop.wait(0) and not task.done():
            task.cancel()
            service.ask_to_end()  # the sender of the signal may not wait long
            return False
        if time.monotonic() - checked > CHECK_PERIOD_S:
            checked = time.monotonic()
            service.check()
    task.result()
    return True


def _config(task: TaskConfig, task_file: Path) -> TandemConfig:
    """Load the configuration of the service to start; a run always needs its home. Raises TaskFileError."""
    source = task.service.config and task_file.parent / task.service.config.expanduser()
    try:
        return TandemConfig.load(source)
    except ValueError as error:
        raise TaskFileError(f"service.config of {task_file}: {error}" if source else str(error)) from None


def _directory(task: TaskConfig, config: TandemConfig) -> Path:
    """Return the run's directory. It never depends on the working directory: a Ray job's is temporary."""
    return config.home / (task.output.directory or Path("runs", task.name)).expanduser()


def _say_how_far(directory: RunDirectory, task: TaskConfig, out: PlainConsole) -> None:
    if directory.state.model is None:  # it hasn't begun
        return
    num_trained, jobs = directory.ledger.num_trained, task.training.jobs
    done = is_finished(directory, task)
    rest = "" if done else " Run the same command to resume."
    out.print(f"{num_trained} of {jobs} jobs are trained ({directory.path}).{rest}")


def _plot(task: TaskConfig, directory: RunDirectory) -> None:
    if directory.ledger.num_trained:
        plot_rewards(directory.ledger, task.name, directory.path / "reward.png")
