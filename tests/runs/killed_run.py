"""Run a task file as `tandem train` does, against a service at a URL, until it is killed."""

import asyncio
import sys
from pathlib import Path

from tandem.runs.directory import RunDirectory
from tandem.runs.reporting.console import PlainConsole
from tandem.runs.reporting.scalars import ScalarWriter
from tandem.runs.reporting.terminal import TerminalReport
from tandem.runs.run import begin_or_resume, plan, run

task_file, url, path = sys.argv[1:]
planned = plan(Path(task_file))
with RunDirectory(Path(path)) as directory:
    begin_or_resume(directory, planned.task)
    writer = ScalarWriter(directory.path / "tensorboard", directory.ledger.rows)
    with TerminalReport(PlainConsole(), directory.ledger, writer) as report:
        asyncio.run(run(planned, directory, url, "tdm_test", report))
