"""Where the threads of a learner's process are, also while it is stuck in C code.

A process registers a signal whose handler, written in C, dumps the stacks into a file of its own. Whoever wants to know
sends the signal from a process of the same node.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

ASK = signal.SIGUSR2  # neither Ray nor torch uses it
ANSWER_S = 30.0  # Ray may have to start a process on the node
WRITE_S = 5.0
_STATE = re.compile(r"^State:\s*(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Whereabouts:
    """A process of the cluster that can be asked for its stacks."""

    node_id: str
    node_ip: str
    pid: int
    dump_fd: int
    """Of the file with its stacks."""
    gpus: tuple[str, ...] = ()
    """Those that Ray has given it, by index on the node or by UUID."""
    gpu_uuid: str = ""
    """Of the one in use, once torch uses it."""

    def __str__(self) -> str:
        gpus = f", GPU {', '.join(self.gpus)}" if self.gpus else ""
        uuid = f" ({self.gpu_uuid})" if self.gpu_uuid and self.gpu_uuid not in self.gpus else ""
        return f"process {self.pid} on node {self.node_ip}{gpus}{uuid}"


def whereabouts() -> Whereabouts:
    """Return where this process, an actor's, is. It writes the stacks of its threads to a file whenever it is asked."""
    context = ray.get_runtime_context()
    return Whereabouts(
        context.get_node_id(),
        ray.util.get_node_ip_address(),
        os.getpid(),
        _dump_on_signal(),
        tuple(context.get_accelerator_ids().get("GPU", ())),
        _gpu_uuid(),
    )


def _gpu_uuid() -> str:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


@cache
def _dump_on_signal() -> int:
    """Register the signal, once, and return the file's descriptor."""
    file = tempfile.TemporaryFile()
    fd = os.dup(file.fileno())
    file.close()
    faulthandler.register(ASK, file=fd, all_threads=True)
    return fd


def stacks_of(processes: Sequence[Whereabouts]) -> list[str]:
    """Return the stacks of all threads of each process, or why there are none. Takes half a minute at most."""
    refs, deadline = [_reading(process) for process in processes], time.monotonic() + ANSWER_S
    found: list[str] = []
    for ref in refs:
        try:
            found.append(ray.get(ref, timeout=max(0.0, deadline - time.monotonic())))
        except ray.exceptions.RayError as error:
            found.append(f"Its node gave no answer: {type(error).__name__}.")
    return found


def _reading(process: Whereabouts) -> ray.ObjectRef[str]:
    on_that_node = NodeAffinitySchedulingStrategy(process.node_id, soft=False)
    reader = ray.remote(read_stacks).options(num_cpus=0, max_retries=0, scheduling_strategy=on_that_node)
    ref: ray.ObjectRef[str] = reader.remote(process.pid, process.dump_fd)
    return ref


def read_stacks(pid: int, fd: int) -> str:
    """Ask a process of this node for its stacks, and return them."""
    try:
        state = _STATE.search(Path(f"/proc/{pid}/status").read_text())
        dump = Path(f"/proc/{pid}/fd/{fd}")
        size = dump.stat().st_size
        os.kill(pid, ASK)
        written, deadline = size, time.monotonic() + WRITE_S
        while time.monotonic() < deadline:
            time.sleep(0.1)
            before, written = written, dump.stat().st_size
            if before == written > size:
                break
        text = dump.read_bytes()[size:].decode(errors="replace")
    except OSError as error:
        return f"The process can't be asked: {error}."
    said = f"Its state is {state[1] if state else 'unknown'}.\n"
    return said + (text or "It doesn't answer: it is stopped, or waits in the kernel.\n")
