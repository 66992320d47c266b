"""Commands that use a running service: list models and jobs, follow a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from tandem.cli.listing import Json, print_json, print_table
from tandem.client import Client, NoAnswerError, SettingsError, TandemError
from tandem.runs.reporting.console import PlainConsole

out = PlainConsole()
err = PlainConsole(stderr=True)
Limit = Annotated[int, typer.Option(min=1, max=100)]
SHOWN_METRICS = (
    *("loss/train", "loss/grad_norm", "loss/entropy", "data/step_trainer_tokens"),
    *("loss", "learning_rate", "grad_norm", "num_trainable_tokens"),  # of supervised jobs
)
WATCH_RETRIES_S = 30.0
EXPORT_RETRIES_S = 60.0


MODEL_COLUMNS = {
    "model": "name",
    "base model": "base_model",
    "newest version": "step",
    "origin": "origin_text",
    "id": "id",
}
JOB_COLUMNS = {
    "job": "id",
    "kind": "kind",
    "state": "state",
    "version": "step",
    "attempt": "attempt",
    "created": "created_at",
    "error": "error",
}


def models(limit: Limit = 20, json: Json = False) -> None:
    """List your models and their newest versions."""
    with _client() as client:
        found = list(islice(client.models(newest_first=True), limit))
    if json:
        return print_json(out, [{"name": model.name, **asdict(model)} for model in found])
    print_table(out, MODEL_COLUMNS, found)


def jobs(
    model: Annotated[str | None, typer.Option(help="Only jobs of this model id.")] = None,
    limit: Limit = 20,
    json: Json = False,
) -> None:
    """List your training jobs, newest first."""
    with _client() as client:
        found = list(islice(client.jobs(model=model), limit))
    if json:
        return print_json(out, [asdict(job) for job in found])
    print_table(out, JOB_COLUMNS, found)


def export(
    model: Annotated[
        str, typer.Argument(help="MODEL or MODEL:stepN; MODEL is a name as completions use it, or an id.")
    ],
    directory: Annotated[Path, typer.Argument(help="A new or empty directory.")],
    merge: Annotated[
        bool, typer.Option("--merge", help="Write the whole model with the adapter merged into it.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="With --merge: the base model's directory or Hugging Face id. Default: the service's."),
    ] = None,
) -> None:
    """Download a version: its adapter in PEFT's files, or a checkpoint that needs no LoRA."""
    from tandem.cli.commands.export import ExportError
    from tandem.cli.commands.export import export as run

    with _client(EXPORT_RETRIES_S) as client:
        try:
            adapter = run(client, model, directory, merge, base)
        except ExportError as error:
            err.error(str(error))
            raise typer.Exit(1) from None
    written = f"{adapter.model.base_model} with the adapter merged" if merge else "the adapter"
    out.print(f"{directory}: {written}, {adapter.model.version_name(adapter.step)} ({adapter.digest})")


def usage(
    by: Annotated[
        list[str] | None,
        typer.Option(help="base_model, day, hour, job, key, model, phase, project or version. Repeat it for several."),
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", help="A day or time, by default 7 days before --to.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="A day or time that isn't included, by default now.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for spreadsheets.")] = False,
    json: Json = False,
) -> None:
    """Show what your entity has used, and what it cost: tokens, and seconds of learners, engines and CPUs."""
    from tandem.cli.commands.usage import columns, groups, row

    wanted = by if by is not None else ["model"]
    with _client() as client:
        if csv:
            typer.echo(client.usage_csv(begin=begin, end=end, group_by=wanted).decode(), nl=False)
            return
        found = list(groups(client, begin, end, wanted))
    if json:
        return print_json(out, {"data": found[:-1], "total": found[-1]})
    print_table(out, columns(wanted), [row(group, wanted) for group in found])


def watch(job: str, json: Json = False) -> None:
    """Follow a training job until it ends."""
    if json:
        return _watch_as_json(job)
    note = TextColumn("{task.fields[note]}", markup=False)
    state = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=len("succeeded"))
    )
    columns = [state, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note]
    with _client(WATCH_RETRIES_S) as client, Progress(*columns, console=out) as progress:
        task = progress.add_task("queued", total=None, note="")
        for event in client.events(job):
            match event.type:
                case "training_started":
                    progress.update(task, description="training", total=event.data["num_gradient_steps"])
                case "warning":
                    progress.console.print(event.data["message"])
                case "gradient_step":
                    shown = {name.split("/")[-1]: event.data[name] for name in SHOWN_METRICS if name in event.data}
                    progress.update(task, advance=1, note="  ".join(f"{name} {shown[name]:.4g}" for name in shown))
                case "engine_disagrees":
                    progress.console.print(Text(f"Alarm: {event.data['reason']}", style="red"))
                case "training_ended":
                    progress.update(task, description="succeeded")
                case "training_failed":
                    progress.update(task, description="failed")
                    progress.stop()
                    err.print(event.data["error_message"])
                    raise typer.Exit(1)


def _watch_as_json(job: str) -> None:
    """Print one event per line as it comes."""
    with _client(WATCH_RETRIES_S) as client:
        for event in client.events(job):
            print_json(out, asdict(event))
            if event.type == "training_failed":
                raise typer.Exit(1)


@contextmanager
def _client(retries_s: float = 0.0) -> Iterator[Client]:
    """Yield a client of the service at TANDEM_URL. Print its errors and exit."""
    try:
        with Client(retries=retries_s) as client:
            yield client
    except SettingsError as error:
        err.error(str(error))
        raise typer.Exit(2) from None
    except TandemError as error:
        is_away = isinstance(error, NoAnswerError)
        err.error(str(error), "`tandem up` starts a service; TANDEM_URL names another one." if is_away else "")
        raise typer.Exit(1) from None
