"""Commands that use a running service: list models and jobs, follow a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tandem.client import Client, NoAnswerError, SettingsError, TandemError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)
Limit = Annotated[int, typer.Option(min=1, max=100)]
SHOWN_METRICS = ("loss/train", "loss/grad_norm", "loss/entropy", "data/step_trainer_tokens")
WATCH_RETRIES_S = 30.0


def models(limit: Limit = 20) -> None:
    """List your models and their newest versions."""
    table = Table("model", "base model", "newest version", "id")
    with _client() as client:
        for model in islice(client.models(newest_first=True), limit):
            table.add_row(model.name, model.base_model, str(model.step), model.id)
    out.print(table)


def jobs(
    model: Annotated[str | None, typer.Option(help="Only jobs of this model id.")] = None, limit: Limit = 20
) -> None:
    """List your training jobs, newest first."""
    table = Table("job", "state", "version", "attempt", "created", "error", title=None)
    with _client() as client:
        for job in islice(client.jobs(model=model), limit):
            step = "" if job.step is None else str(job.step)
            table.add_row(job.id, job.state, step, str(job.attempt), str(job.created_at), escape(job.error or ""))
    out.print(table)


def watch(job: str) -> None:
    """Follow a training job until it ends."""
    note = TextColumn("{task.fields[note]}")
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), note]
    with _client(WATCH_RETRIES_S) as client, Progress(*columns, console=out) as progress:
        task = progress.add_task("queued", total=None, note="")
        for event in client.events(job):
            match event.type:
                case "training_started":
                    progress.update(task, description="training", total=event.data["num_gradient_steps"])
                case "gradient_step":
                    shown = {name.split("/")[-1]: event.data[name] for name in SHOWN_METRICS if name in event.data}
                    progress.update(task, advance=1, note="  ".join(f"{name} {shown[name]:.4g}" for name in shown))
                case "training_ended":
                    progress.update(task, description="[green]succeeded[/green]")
                case "training_failed":
                    progress.update(task, description="[red]failed[/red]")
                    progress.stop()
                    err.print(escape(event.data["error_message"]))
                    raise typer.Exit(1)


@contextmanager
def _client(retries_s: float = 0.0) -> Iterator[Client]:
    """Yield a client of the service at TANDEM_URL. Print its errors and exit."""
    try:
        with Client(retries=retries_s) as client:
            yield client
    except SettingsError as error:
        err.print(escape(str(error)))
        raise typer.Exit(2) from None
    except TandemError as error:
        is_away = isinstance(error, NoAnswerError)
        advice = " `tandem up` starts a service; TANDEM_URL names another one." if is_away else ""
        err.print(f"[red]{escape(str(error))}[/red]{advice}", soft_wrap=True)
        raise typer.Exit(1) from None
