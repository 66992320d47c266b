"""`tandem up` in its own process, with all its child processes: start, watch, kill and restart it."""

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
START_DEADLINE_S = 900.0  # a bound; on an idle machine about one minute
END_DEADLINE_S = 300.0  # Ray's agents need up to two minutes to notice that their raylet was killed


class ServiceError(RuntimeError):
    """The service didn't start or didn't shut down. The message has the end of its log."""


class ServiceProcess:
    """A service with its own home, port and Ray.

    with ServiceProcess(home, settings) as service:
        service.start()
        ...
        service.kill_everything()
        service.start()                # the same store, the same port

    All processes that `tandem up` starts stay in the session (as in setsid) that it leads, also after their parent has
    died, so this object finds all of them and touches no others.
    """

    def __init__(self, home: Path, settings: Mapping[str, str]):
        self.home, self._log = home, home / "up.log"
        self._held = hold_port("127.0.0.1")  # held between two starts too
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
        """The pid of `tandem up`, once started."""
        return self._sessions[-1]

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._up is not None, "start() comes first"
        return self._up

    def create_key(self) -> str:
        """Create an API key with the command line."""
        command = [str(TANDEM), "keys", "create", "--name", "faults"]
        printed = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=300, check=True
        )
        [key] = re.findall(r"\btdm_\S+", printed.stdout)
        return str(key)

    def start(self) -> None:
        """Start `tandem up` and return when the service is ready. Raises ServiceError."""
        logged_before = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._up = up = subprocess.Popen(
                [TANDEM, "up"],
                env=self._environment,
                cwd=self.home,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions.append(up.pid)

        def answers() -> bool:
            if up.poll() is not None:
                raise ServiceError(f"tandem up ended with status {up.returncode}. {self.end_of_log()}")
            return b"Tandem answers at" in self._log.read_bytes()[logged_before:]

        if not wait_until(answers, START_DEADLINE_S):
            raise ServiceError(f"tandem up wasn't ready within {START_DEADLINE_S:g} s. {self.end_of_log()}")

    def terminate(self) -> None:
        """Send SIGTERM to `tandem up`, which must exit with status 0. Raises ServiceError."""
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
        """Wait for `tandem up` to exit by itself, and return its status. Raises ServiceError."""
        try:
            return self._started.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ServiceError(f"tandem up still ran {END_DEADLINE_S:g} s later. {self.end_of_log()}") from None

    def kill(self) -> None:
        """Send SIGKILL to `tandem up` alone. The processes that it started have to notice."""
        self._started.kill()
        self._started.wait()

    def kill_everything(self) -> None:
        """Send SIGKILL to every process, like a machine that loses its power."""
        while processes := self.processes():
            for process in processes:
                send(process, signal.SIGKILL)
            psutil.wait_procs(processes, timeout=5)

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Return the running or stopped processes whose title starts with `title`, by pid."""
        return [p for p in self._of(self._sessions) if title_of(p).startswith(title)]

    def earlier_processes(self) -> list[psutil.Process]:
        """Return the processes that are left of earlier starts."""
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
    """Return the title that `ps` shows, or "" if the process is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal, if the process still exists."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        pass


def wait_until(holds: Callable[[], object], deadline_s: float, poll_s: float = 0.2) -> bool:
    """Poll `holds` and return True when it does, or False at the deadline."""
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
    """Return the leader of the process's session, or None if it has ended, reaped or not."""
    try:
        return None if process.status() == psutil.STATUS_ZOMBIE else os.getsid(process.pid)
    except (OSError, psutil.Error):
        return None
