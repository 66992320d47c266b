"""`tandem up` as a process of its own, with all that it starts: started, watched, killed, started again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from tandem.cluster.processes.held_ports import hold_port

TANDEM = Path(sys.executable).with_name("tandem")
START_DEADLINE_S = 900.0  # about one minute, unless the machine has much else to do
END_DEADLINE_S = 300.0  # Ray's own agents notice after up to two minutes that their raylet was killed


class ServiceError(RuntimeError):
    """The service didn't start, or didn't end. The message has the end of its log."""


class ServiceProcess:
    """A service with its own home, port and Ray.

    with ServiceProcess(home, settings) as service:
        service.start()
        ...
        service.kill_everything()
        service.start()                # the same store, the same port

    Everything that `tandem up` starts stays in the session (as in setsid) that it leads, whoever its parent is by then,
    so nothing is overlooked, and nothing is touched that this object didn't start.
    """

    def __init__(self, home: Path, settings: Mapping[str, str]):
        self.home, self._log = home, home / "up.log"
        self._held = hold_port("127.0.0.1")  # also between two starts
        self.port = self._held.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        own = {"TANDEM_HOME": str(home), "TANDEM_HTTP__PORT": str(self.port), "OMP_NUM_THREADS": "1"}
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TANDEM_"))}
        self._environment = {**inherited, **own, **settings, "COLUMNS": "200"}
        self._up: subprocess.Popen[bytes] | None = None
        self._sessions: list[int] = []
        home.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.terminate()
        finally:
            self.kill_everything()
            self._held.close()

    @property
    def pid(self) -> int:
        """Of `tandem up`, once started."""
        return self._sessions[-1]

    def create_key(self) -> str:
        """A new API key, by the command that users have for it."""
        command = [TANDEM, "keys", "create", "--name", "faults"]
        printed = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=300, check=True
        )
        return re.search(r"\btdm_\S+", printed.stdout)[0]

    def start(self) -> None:
        """Starts `tandem up` and returns when it says that the service answers. Raises ServiceError."""
        said_before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._up = subprocess.Popen(
                [TANDEM, "up"],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.append(self._up.pid)

        def answers() -> bool:
            if self._up.poll() is not None:
                raise ServiceError(f"tandem up ended with status {self._up.returncode}. {self.end_of_log()}")
            return b"Tandem answers at" in self._log.read_bytes()[said_before:]

        if not wait_until(answers, START_DEADLINE_S):
            raise ServiceError(f"tandem up wasn't ready within {START_DEADLINE_S:g} s. {self.end_of_log()}")

    def terminate(self) -> None:
        """SIGTERM to `tandem up`, which has to end by itself, with status 0. Raises ServiceError."""
        if self._up is None or self._up.poll() is not None:
            return
        self._up.send_signal(signal.SIGTERM)
        try:
            status = self._up.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"tandem up still ran {END_DEADLINE_S:g} s after SIGTERM. {self.end_of_log()}") from None
        if status != 0:
            raise ServiceError(f"tandem up ended with status {status} after SIGTERM. {self.end_of_log()}")

    def wait(self) -> int:
        """The status that `tandem up` ends with, by itself. Raises ServiceError."""
        try:
            return self._up.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"tandem up still ran {END_DEADLINE_S:g} s later. {self.end_of_log()}") from None

    def kill(self) -> None:
        """SIGKILL to `tandem up` alone; what it started has to notice."""
        self._up.kill()
        self._up.wait()

    def kill_everything(self) -> None:
        """SIGKILL to every process at once, as when a machine loses its power."""
        while processes := self.processes():
            for process in processes:
                send(process, signal.SIGKILL)
            psutil.wait_procs(processes, timeout=5)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """The processes that run, or are stopped, whose title begins so, by pid."""
        return [p for p in self._of(self._sessions) if title_of(p).startswith(title)]

    def earlier_processes(self) -> list[psutil.Process]:
        """What is left of the times before the last start."""
        return self._of(self._sessions[:-1])

    def http(self, key: str, timeout_s: float) -> httpx.Client:
        return httpx.Client(base_url=f"{self.url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=timeout_s)

    def _of(self, sessions: Sequence[int]) -> list[psutil.Process]:
        if self._up is not None:
            self._up.poll()  # reaps it
        return [p for p in map(_process, psutil.pids()) if p and _session(p) in sessions]

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end_of_log(self) -> str:
        return f"The end of {self._log}:\n{self.log[-3000:]}"


def title_of(process: psutil.Process) -> str:
    """What `ps` shows; empty when the process has gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def send(process: psutil.Process, number: signal.Signals) -> None:
    """A signal; no error when the process has gone already."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def wait_until(holds: Callable[[], bool], deadline_s: float, poll_s: float = 0.2) -> bool:
    """Whether it held before the deadline."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(poll_s)
    return True


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _session(process: psutil.Process) -> int | None:
    """The leader of its session; None when it has ended, whether or not its parent has noticed."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (OSError, psutil.Error):
        return None
