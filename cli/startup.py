"""Progress, signals and exit status of a command while it starts the service."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.text import Text

from tandem.cli.stopping import StopSignals
from tandem.runs.reporting.console import PlainConsole


class StartError(RuntimeError):
    """The service didn't start. The message names the part that failed and its log."""


class ServiceLostError(RuntimeError):
    """The service has ended because its Ray or its Ray Serve has."""


class Startup:
    """Shows a spinner in a terminal and a line for each step elsewhere. Handles the signals that end the command."""

    def __init__(self, err: PlainConsole):
        self.stop = StopSignals()
        self._err = err
        self._status = err.status(Text("Starting Tandem")) if sys.stderr.isatty() else None
        self._said: set[str] = set()

    def begin(self) -> None:
        self.stop.listen()
        if self._status:
            self._status.start()

    def progress(self, what: str) -> None:
        """Show a step. Raises KeyboardInterrupt after a signal."""
        self.stop.listen()
        self.stop.check()
        if self._status:
            self._status.update(Text(f"Starting Tandem: {what}"))
        elif what not in self._said:
            self._said.add(what)
            self._err.print(f"Starting Tandem: {what}")

    def warn_of_open_ray(self) -> None:
        """Warn that a Ray without authentication runs anybody's code. Call this once Ray is connected."""
        from tandem.cluster.processes.local_ray import token_authentication_is_on

        if not token_authentication_is_on():
            self._err.warning(
                "This Ray has no token authentication: anyone who reaches its ports can run any code.",
                "Set RAY_AUTH_MODE=token for all its nodes and this command, or close its ports (docs/security.md).",
            )

    def ready(self) -> None:
        """End the display of the start: the service answers."""
        self.stop.listen()
        self.end()

    def end(self) -> None:
        if self._status:
            self._status.stop()


@contextmanager
def startup(err: PlainConsole) -> Iterator[Startup]:
    """Handle the signals in the block, and turn a failed start, a lost service or a signal into an exit status."""
    start = Startup(err)
    start.begin()
    try:
        yield start
    except (StartError, ServiceLostError) as error:
        err.error(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print("Stopped.")
        raise typer.Exit(128 + (start.stop.signal or signal.SIGINT)) from None
    finally:
        start.end()
