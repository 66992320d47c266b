"""The `tandem` command: check a machine, start the service, list models and jobs, train, manage API keys."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

import tandem
from tandem.cli.commands import service as service_commands
from tandem.cli.doctor.command import doctor
from tandem.cli.exposure import is_local, url
from tandem.cli.listing import Json, attributes, print_json, print_table
from tandem.cli.output import TolerantApp
from tandem.cli.startup import startup
from tandem.cli.stopping import StopSignals
from tandem.cli.surroundings import UnusableError, check_home, check_surroundings
from tandem.cluster.config import TandemConfig
from tandem.cluster.sqlite_urls import sqlite_path
from tandem.cluster.telemetry.setup import Telemetry
from tandem.runs.reporting.console import PlainConsole

app = TolerantApp(
    help="Reinforcement learning of language-model agents, on your own Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # they may be secret
)
keys = typer.Typer(help="Create, list and revoke API keys.", no_args_is_help=True)
app.add_typer(keys, name="keys")
out = PlainConsole()
err = PlainConsole(stderr=True)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="A tandem.yaml. Default: the built-in tiny model.")
]
KEY_COLUMNS = {
    "id": "id",
    "name": "name",
    "entity": "entity",
    "role": "role",
    "created": "created_at",
    "revoked": "revoked_at",
}
EXAMPLE = Path(tandem.__file__).parent / "examples" / "quickstart.py"


def _config(path: Path | None) -> TandemConfig:
    try:
        return TandemConfig.load(path)
    except ValueError as error:
        err.error(str(error))
        raise typer.Exit(2) from None


def _store(config: TandemConfig) -> Any:
    from tandem.serve.store.store import Store

    with _store_faults(config):
        check_home(config)
        return Store(config.resolved_store_url)


@contextmanager
def _store_faults(config: TandemConfig) -> Iterator[None]:
    """Print a fault of the store, or a value that it rejects, and exit."""
    from sqlalchemy.exc import DatabaseError

    from tandem.serve.errors import NoAnswerError
    from tandem.serve.store.migrations import SchemaError

    try:
        yield
    except (ValueError, SchemaError, NoAnswerError) as error:
        err.error(str(error))
    except DatabaseError as error:
        file = sqlite_path(config.resolved_store_url) or "at store_url"
        err.error(
            f"The store {file} can't be used: {error.orig}.", "Restore it, or set another TANDEM_HOME or store_url."
        )
    else:
        return
    raise typer.Exit(2)


@app.command()
def up(
    config_path: ConfigOption = None,
    verbose: Annotated[bool, typer.Option(help="Show the log of every process.")] = False,
) -> None:
    """Start the service and keep it running until Ctrl-C."""
    from tandem.serve.keys import create_key, ensure_admin_key

    config = _config(config_path)
    store = _store(config)
    ensure_admin_key(store, config)
    _refuse_to_listen_without_keys(config, store, config_path)
    _show_memory(config)
    with _service(config, verbose) as stop:
        from tandem.cli.alarms import Alarms  # imports Ray Serve, which the start does while Ray starts
        from tandem.cli.watching import ServiceWatch

        names = ", ".join(base.name for base in config.base_models)
        address = (f"{url(config.http)}/v1", "bold")
        out.print(Text.assemble("\nTandem answers at ", address, f" (base models: {names})."))
        out.print(Text.assemble("Its page is ", (f"{url(config.http)}/", "bold"), ": sign in with an API key."))
        if not store.keys.exist():
            key = create_key(store, name="first", entity="default", role="admin")
            out.print(f"This is the first start. Your API key, shown only once:\n\n    export TANDEM_API_KEY={key}\n")
        out.print("Press Ctrl-C to stop the service.")
        watch, alarms = ServiceWatch(), Alarms()
        while not stop.wait(watch.PERIOD_S):
            watch.check()
            for alarm in alarms.new():
                err.error(alarm)
        out.print("Stopping. Press Ctrl-C again to stop at once; running jobs then start again at the next start.")


def _refuse_to_listen_without_keys(config: TandemConfig, store: Any, config_path: Path | None) -> None:
    """Exit if other machines can reach the service and it has no valid key. `up` prints a first key only locally."""
    if is_local(config.http.host) or any(key.revoked_at is None for key in store.keys.all()):
        return
    option = f" --config {config_path}" if config_path else ""
    err.error(
        f"Other machines can reach http.host {config.http.host}, and the service has no valid key yet.",
        f"Create one first:\n\n    tandem keys create --name me --role admin{option}\n",
    )
    raise typer.Exit(2)


def _show_memory(config: TandemConfig) -> None:
    """Print the memory plan of each base model if this machine has GPUs. Exit if one doesn't fit."""
    from tandem.cli.gpus import GpuQueryError, local_gpus

    try:
        gpus = [] if os.environ.get("RAY_ADDRESS") else local_gpus()  # a cluster has them on its nodes
    except GpuQueryError as error:
        err.warning(str(error), "No memory plan can be made before the start.")
        return
    if not gpus:
        return
    from tandem.cli.memory_plans import memory_plan

    for base in config.base_models:
        try:
            out.print(memory_plan(config, base.name, gpus))
        except (ValueError, OSError) as error:  # ValueError: also PolicyError
            err.error(str(error))
            raise typer.Exit(2) from None


@app.command()
def demo(
    script: Annotated[Path, typer.Argument(help="User code to run against the service.")] = EXAMPLE,
    config_path: ConfigOption = None,
    verbose: Annotated[bool, typer.Option(help="Show the log of every process.")] = False,
) -> None:
    """Start the service, run an example against it, and stop the service."""
    from tandem.serve.keys import create_key, revoke_key

    config = _config(config_path)
    store = _store(config)
    if not script.is_file():
        err.error(f"There is no script at {script}.", "Name one: tandem demo examples/quickstart.py")
        raise typer.Exit(2)
    with _service(config, verbose) as stop:
        key = create_key(store, name=f"demo {time.strftime('%Y-%m-%d %H:%M:%S')}", entity="default", role="train")
        environment = {**os.environ, "TANDEM_URL": url(config.http), "TANDEM_API_KEY": key}
        page = f"{url(config.http)}/"
        out.print(Text.assemble("Watch it at ", (page, "bold"), f"; sign in with this key: {key}"))
        process = subprocess.Popen([sys.executable, str(script)], env=environment)
        try:
            while process.poll() is None:
                stop.check()
                time.sleep(0.1)
            _end_of_demo(process.returncode, page, stop)
        finally:
            process.terminate()
            revoke_key(store, key)
    raise typer.Exit(process.returncode)


def _end_of_demo(status: int, page: str, stop: StopSignals) -> None:
    """Print where the run is shown. In a terminal, keep the service until Ctrl-C, so that people can look."""
    if status == 0 and sys.stdin.isatty() and sys.stdout.isatty():
        out.print(Text.assemble("\nThe run is on the page: ", (page, "bold"), ". Press Ctrl-C to stop the service."))
        while not stop.wait(1.0):
            pass
    elif status == 0:
        out.print(f"\nThe run is on the page: start the service with `tandem up`, and open {page}")


@contextmanager
def _service(config: TandemConfig, verbose: bool) -> Iterator[StopSignals]:
    """Run the service while the block runs, and show the progress of its start."""
    from tandem.cli.launch import running

    if not os.environ.get("RAY_ADDRESS"):
        try:
            check_surroundings(config)
        except UnusableError as error:
            err.error(str(error))
            raise typer.Exit(2) from None
    if config.logging.format == "json":  # in text, people read what the command prints
        Telemetry.of(config).set_up("cli")
    with startup(err) as start, running(config, verbose, start.progress):
        start.warn_of_open_ray()
        start.ready()
        yield start.stop


@app.command()
def train(
    task: Annotated[Path, typer.Argument(help="A YAML file: environment, model, rollouts, training (docs/train.md).")],
    verbose: Annotated[bool, typer.Option(help="Show the log of every process of a service that is started.")] = False,
) -> None:
    """Run a whole RL task: rollouts, training jobs, evaluation. The same command resumes an interrupted run."""
    from tandem.cli.commands.train import train as run
    from tandem.runs.event_loop import exit_process

    try:
        status = run(task, verbose, out, err)
    except typer.Exit as ended:
        status = ended.exit_code
    exit_process(status)


for command in (
    doctor,
    service_commands.models,
    service_commands.jobs,
    service_commands.watch,
    service_commands.usage,
    service_commands.export,
):
    app.command()(command)


# Keys and versions are in the service's store, so these commands read its configuration.


@app.command()
def retention(
    keep_versions: Annotated[
        int | None, typer.Option(min=1, help="Try this limit instead of retention.keep_versions.")
    ] = None,
    keep_optimizer: Annotated[
        int | None, typer.Option(min=1, help="Try this limit instead of retention.keep_optimizer.")
    ] = None,
    keep_days: Annotated[
        float | None, typer.Option(min=0, help="Try this limit instead of trajectories.keep_days.")
    ] = None,
    keep_bytes: Annotated[
        int | None, typer.Option(min=0, help="Try this limit instead of trajectories.keep_bytes.")
    ] = None,
    config_path: ConfigOption = None,
    json: Json = False,
) -> None:
    """Show what retention would delete now, with sizes. Nothing is deleted: the service does that, every hour."""
    from tandem.cli.commands.retention import COLUMNS, deletions, kept, trajectory_deletions
    from tandem.cluster.artifacts import Artifacts

    config = _config(config_path)
    tried = {"keep_versions": keep_versions, "keep_optimizer": keep_optimizer}
    settings = config.retention.model_copy(update={name: limit for name, limit in tried.items() if limit is not None})
    with _store_faults(config):
        store = _store(config)
        found, staying = deletions(store, Artifacts(config.artifacts_root), settings), kept(store, settings)
        of_trajectories = {"keep_days": keep_days, "keep_bytes": keep_bytes}
        given = {name: limit for name, limit in of_trajectories.items() if limit is not None}
        trajectories = config.trajectories.model_copy(update=given)
        found += trajectory_deletions(store, trajectories)
    if staying:
        err.print(f"{len(staying)} versions beyond the limits stay, because a user keeps them: {', '.join(staying)}")
    if json:
        return print_json(out, attributes(found, *COLUMNS.values()))
    print_table(out, COLUMNS, found)
    total = sum(deletion.bytes for deletion in found)
    tried_limits = settings.model_dump() | trajectories.model_dump(include={"keep_days", "keep_bytes"})
    limits = ", ".join(f"{name} {limit}" for name, limit in tried_limits.items() if limit is not None) or "no limits"
    err.print(f"{len(found)} deletions of {total / 1e6:.1f} MB with {limits}. Nothing was deleted.")


@keys.command("create")
def keys_create(
    name: Annotated[str, typer.Option(help="A name for the list of keys.")],
    role: Annotated[
        Literal["infer", "train", "admin"],
        typer.Option(help="infer: completions. train: also jobs and models. admin: also the entity's keys."),
    ] = "train",
    entity: Annotated[str, typer.Option(help="The entity whose models it may use.")] = "default",
    config_path: ConfigOption = None,
) -> None:
    """Create a key and print it. Only its hash is stored."""
    from tandem.serve.keys import create_key

    config = _config(config_path)
    with _store_faults(config):
        key = create_key(_store(config), name, entity, role)
    out.print(key)


@keys.command("generate")
def keys_generate() -> None:
    """Print a new key, and the configuration line that makes it the first admin key of a service."""
    from tandem.serve.keys import generate_key

    key, key_sha256 = generate_key()
    err.print("The key, shown only once. It becomes valid when the service's configuration has the next line:")
    out.print(key)
    out.print(f"admin_key_sha256: {key_sha256}")


@keys.command("list")
def keys_list(config_path: ConfigOption = None, json: Json = False) -> None:
    """List keys, without their secrets."""
    config = _config(config_path)
    with _store_faults(config):
        found = _store(config).keys.all()
    if json:
        return print_json(out, attributes(found, *KEY_COLUMNS.values()))
    print_table(out, KEY_COLUMNS, found)


@keys.command("revoke")
def keys_revoke(
    key: Annotated[str, typer.Argument(help="The key itself, or its id from `tandem keys list`.")],
    config_path: ConfigOption = None,
) -> None:
    """Revoke a key: requests with it are rejected from now on."""
    from tandem.serve.keys import revoke_key

    config = _config(config_path)
    with _store_faults(config):
        is_revoked = revoke_key(_store(config), key.strip())
    if not is_revoked:
        err.print("There is no such key.")
        raise typer.Exit(1)
    out.print("Revoked.")
