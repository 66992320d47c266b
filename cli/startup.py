"""What a command shows while the service starts, and how it ends when that fails or is given up."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from tandem.cli.stopping import StopSignals


class StartError(RuntimeError):
    """The service didn't come up. The message says which part, and where its log is."""


class ServiceLostError(RuntimeError):
    """The Ray or the Serve under a running service is gone, and the service with it."""


class Startup:
    """A spinner in a terminal, elsewhere a line for each step. Listens to the signals that end the command."""

    def __init__(self, err: Console):
        self.stop = StopSignals()
        self._err = err
        self._status = err.status("Starting Tandem") if sys.stderr.isatty() else None
        self._said: set[str] = set()

    def begin(self) -> None:
        self.stop.listen()
        if self._status:
            self._status.start()

    def progress(self, what: str) -> None:
        """Raises KeyboardInterrupt once a signal has come."""
        self.stop.listen()
        self.stop.check()
        if self._status:
            self._status.update(f"Starting Tandem: {what}")
        elif what not in self._said:
            self._said.add(what)
            self._err.print(f"Starting Tandem: {what}")

    def warn_of_open_ray(self) -> None:
        """For a service that this command has started. To be called once Ray is connected."""
        from tandem.cluster.processes.local_ray import token_authentication_is_on

        if not token_authentication_is_on():
            self._err.print(
                "[yellow]This Ray has no token authentication, so whoever reaches its ports can run any code:[/yellow] "
                "set RAY_AUTH_MODE=token for all its nodes and for this command, or close its ports (docs/security.md)."
            )

    def ready(self) -> None:
        """The service answers: what comes now isn't the start any more."""
        self.stop.listen()
        self.end()

    def end(self) -> None:
        if self._status:
            self._status.stop()


@contextmanager
def startup(err: Console) -> Iterator[Startup]:
    """Ends the command with a sentence when the service doesn't start or is lost, and when a signal ends it."""
    start = Startup(err)
    start.begin()
    try:
        yield start
    except (StartError, ServiceLostError) as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("Ended.")
        raise typer.Exit(128 + (start.stop.signal or signal.SIGINT)) from None
    finally:
        start.end()
