"""A new Ray cluster on this machine, started by `ray start --head` and shut down completely."""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

BIN = Path(sys.executable).parent
MARK = "TANDEM_TEST_RAY_HEAD"  # in the environment of all processes that a head starts
OBJECT_STORE_BYTES = 200 << 20
STARTED = b"This command will now block forever"  # "Ray runtime started" comes before Ray writes down its address
START_DEADLINE_S = 600.0  # a bound; on an idle machine 5 s
END_DEADLINE_S = 60.0


class RayHeadError(RuntimeError):
    """The head didn't start. The message has the end of its log."""


@dataclass(frozen=True)
class RayHead:
    """A running head, and how programs and command lines reach it.

    with ray_head(tmp_path) as head:
        head.run("ray", "job", "submit", "--", "echo", "hello")
        subprocess.Popen(["serve", "status"], env=head.env)
    """

    address: str  # of the GCS, for ray.init
    dashboard_url: str
    env: Mapping[str, str]
    """Environment for client commands: the address and the token, and no variables of this process's own Ray."""

    def run(self, *command: str, timeout_s: float = 600, **options) -> subprocess.CompletedProcess[str]:
        """Run a client command to its end; `ray`, `serve` and `tandem` are those of this environment.

        Raises no error for a failed command: check `returncode`. `options` are those of `subprocess.run`.
        """
        beside = BIN / command[0]
        program = [str(beside) if beside.is_file() else command[0], *command[1:]]
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": self.env} | options
        return subprocess.run(program, text=True, timeout=timeout_s, **options)


@contextmanager
def ray_head(directory: Path, num_cpus: int = 4, **environment: str) -> Iterator[RayHead]:
    """A head node on free ports of the loopback interface, with Ray's token authentication.

    `environment` is set for the head's processes, which Serve replicas and jobs inherit. At the end the logs are in
    `directory / "ray-logs"`. Ends every process that the head or its clients have started, and no others; programs of
    Ray jobs, which leave the head's session, are included.
    """
    directory.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(8)
    temp = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray makes sockets in it, whose paths may have 107 bytes
    token = directory / "ray_token"
    with open(os.open(token, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "w") as opened:
        opened.write(secrets.token_hex(32))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "TANDEM_"))}
    path = f"{BIN}:{inherited['PATH']}"
    own = {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0", MARK: mark}
    on_loopback = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    base = {**inherited, "PATH": path, "COLUMNS": "200", **own, **on_loopback}
    process, log = None, directory / "ray-head.log"
    try:
        process, dashboard_url = _start(log, temp, num_cpus, {**base, **environment})
        address = (temp / "ray_current_cluster").read_text().strip()
        where = {"RAY_ADDRESS": address, "RAY_API_SERVER_ADDRESS": dashboard_url}
        serve = {"RAY_DASHBOARD_ADDRESS": dashboard_url}  # what the command line of Serve calls it
        yield RayHead(address, dashboard_url, {**base, "RAY_AUTH_MODE": "token", **where, **serve})
    finally:
        _end(process, mark)
        with suppress(OSError, shutil.Error):
            shutil.copytree(temp / "session_latest" / "logs", directory / "ray-logs", dirs_exist_ok=True)
        shutil.rmtree(temp, ignore_errors=True)


def _start(log: Path, temp: Path, num_cpus: int, environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start `ray start --head` in a new session. Return the process, once it is ready, and its dashboard's URL.

    Ray gives up when its raylet takes 30 s to start, which happens on a busy machine, so this retries.
    """
    deadline = time.monotonic() + START_DEADLINE_S
    while True:
        dashboard, agent, client = free_ports(3)
        options = {
            "node-ip-address": "127.0.0.1",
            "port": 0,
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "num-cpus": num_cpus,
            "object-store-memory": OBJECT_STORE_BYTES,
            "temp-dir": temp,
        }
        command = [BIN / "ray", "start", "--head", "--block", *(f"--{name}={value}" for name, value in options.items())]
        with log.open("wb") as opened:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=opened,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while process.poll() is None and time.monotonic() < deadline:
            if STARTED in log.read_bytes():
                return process, f"http://127.0.0.1:{dashboard}"
            time.sleep(0.2)
        _end(process, environment[MARK])
        if time.monotonic() > deadline:
            raise RayHeadError(f"ray start --head wasn't up within {START_DEADLINE_S:g} s:\n{log.read_text()[-3000:]}")


def _end(process: subprocess.Popen[bytes] | None, mark: str) -> None:
    """Ask the head to shut down, as Ctrl-C would, then kill the processes that are left."""
    if process is None:
        return
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_DEADLINE_S)
    while left := own_processes(process.pid, mark):
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.poll()  # reaps it
        psutil.wait_procs(left, timeout=5)
    process.wait(END_DEADLINE_S)


def own_processes(session: int, mark: str) -> list[psutil.Process]:
    """Return the processes of the head's session and those that carry its mark.

    Children in sessions of their own keep the mark in their environment. Ray workers, which overwrite their environment
    to rename themselves, stay in the session.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if os.getsid(process.pid) == session or process.environ().get(MARK) == mark:
                found.append(process)
    return found


def free_ports(num: int) -> list[int]:
    """Return free ports below the kernel's ephemeral range, so that they stay free until Ray listens on them."""
    free: list[int] = []
    while len(free) < num:
        port = random.randint(20_000, 32_000)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            if port not in free:
                free.append(port)
    return free
