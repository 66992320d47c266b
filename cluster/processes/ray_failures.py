"""Explain failures of Ray actors: the stage, the cause as far as Ray knows it, and a remedy."""

from __future__ import annotations

import logging
import re
import signal
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.cluster.errors import LearnerDevicesError, StageError
from tandem.cluster.processes.accelerator_failures import accelerator_fault
from tandem.cluster.processes.process_log import error_log
from tandem.rl.errors import OutOfMemoryError, PolicyError

logger = logging.getLogger(__name__)
NUM_FRAMES = 2
_FRAME = re.compile(r'^  File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)
_COLOR = re.compile(r"\x1b\[\d*m")
_EXIT_CODE = re.compile(r"exit code (\d+)")
_CRASH = re.compile(
    r"\*\*\* (?P<name>SIG[A-Z]+) received"
    r"(?:.*?most recent call first\):\n  File \"(?P<file>[^\"]+)\", line (?P<line>\d+))?",
    re.DOTALL,
)
KILLED = "was killed by signal 9 (SIGKILL), as the kernel does when memory runs out"
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")  # torch's and Python's own
MORE_MEMORY = (
    "Lower the base model's max_model_len, so that such trajectories are dropped, train on shorter ones, set "
    "learners.gradient_checkpointing, or give each learner a device with more memory (or more of a shared one)."
)
LAST_WORDS_BYTES = 1 << 16
LAST_WORDS_S = 30.0  # a worker process may have to start first


def stage_error(stage: str, who: str, error: BaseException) -> BaseException:
    """Return a StageError about `who` ("a learner"), or `error` itself if it isn't about an actor.

    Logs the whole traceback of a Python error; the message has its last frames.
    """
    if isinstance(error, ray.exceptions.RayTaskError):
        return _python_error(stage, who, error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        cause = f"Ray ended {who}, because its node was running out of memory."
        return StageError(stage, cause, "Use nodes with more memory, or post smaller jobs.", retryable=True)
    if isinstance(error, ray.exceptions.NodeDiedError):
        return StageError(stage, f"the node of {who} was lost.", _OTHER_NODES, retryable=True)
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        cause = f"{who} can't be reached: its node hangs or lost its network."
        return StageError(stage, cause, _OTHER_NODES, retryable=True)
    if isinstance(error, ray.exceptions.RayError) and _LOST_PLACE in str(error):
        cause = f"{who} ended with the engine replica on its GPU, which was replaced."
        return StageError(stage, cause, "The next attempt starts it beside another replica.", retryable=True)
    if isinstance(error, ray.exceptions.ActorUnschedulableError):
        return StageError(
            stage, f"{who} can't be placed: {error}", "Add nodes, or lower its resources in the configuration.", True
        )
    if isinstance(error, ray.exceptions.RayActorError):
        cause, remedy = _death(error)
        return StageError(stage, f"{who} {cause}.", remedy, retryable=True)
    return error


_LOST_PLACE = "placement group was removed"
_OTHER_NODES = "The next attempt uses the remaining nodes."
_NEXT_ATTEMPT = "The next attempt starts a new process; see the log of the old one."


def _death(error: ray.exceptions.RayActorError) -> tuple[str, str]:
    """Return how an actor's process ended, and a remedy. Ray reports the cause only in its message's text."""
    said = str(error)
    if error.actor_init_failed:
        logger.error("%s", said)
        return f"couldn't start: {said.strip().splitlines()[-1]}", "See the traceback in the coordinator's log."
    if error.preempted or "node has died" in said or "node was terminated" in said:
        return "was on a node that was lost", _OTHER_NODES
    if "SIGTERM" in said:
        return "was ended by signal 15 (SIGTERM)", _NEXT_ATTEMPT
    if "ray.kill" in said:
        return "was ended by `ray.kill`", _NEXT_ATTEMPT
    if code := _EXIT_CODE.search(said):
        return f"ended itself with exit code {code[1]}", _NEXT_ATTEMPT
    if "End of file" in said:
        crash = _CRASH.search(_last_words(said))
        if crash is None:
            return KILLED, f"Look at the node's memory. {_NEXT_ATTEMPT}"
        number = getattr(signal, crash["name"]).value
        where = f" in {Path(crash['file']).name}:{crash['line']}" if crash["file"] else ""
        return f"was ended by signal {number} ({crash['name']}){where}", _NEXT_ATTEMPT
    return f"died: {' '.join(said.split())}", _NEXT_ATTEMPT


def _last_words(said: str) -> str:
    """Return the end of the log of the process in Ray's message, or "" if it can't be read.

    A process logs the signals that it can catch, in a file on its node.
    """
    pid, ip = re.search(r"pid: (\d+)", said), re.search(r"ip: (\S+)", said)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and ip and node["NodeManagerAddress"] == ip[1]]
    if not (pid and nodes):
        return ""
    on_that_node = NodeAffinitySchedulingStrategy(nodes[0], soft=False)
    reader = ray.remote(_end_of_log).options(num_cpus=0, max_retries=0, scheduling_strategy=on_that_node)
    try:
        words: str = ray.get(reader.remote(int(pid[1])), timeout=LAST_WORDS_S)
    except ray.exceptions.RayError:
        return ""
    return words


def _end_of_log(pid: int) -> str:
    """Read the log of another worker process of this node: Ray writes them all to one folder."""
    log = error_log(pid)
    return log.read_bytes()[-LAST_WORDS_BYTES:].decode(errors="replace") if log else ""


def _python_error(stage: str, who: str, error: ray.exceptions.RayTaskError) -> StageError:
    cause = error.cause if isinstance(error.cause, Exception) else error
    trace = _COLOR.sub("", str(error))  # without Ray's own frames
    logger.error("Stage %s: %s raised an error\n%s", stage, who, trace)
    if isinstance(cause, PolicyError | LearnerDevicesError):  # whose message says everything
        return StageError(stage, str(cause), "")
    if isinstance(cause, OutOfMemoryError):
        return StageError(stage, str(cause), f"Not even one sequence at a time fits. {MORE_MEMORY}")
    if fault := accelerator_fault(cause):
        return StageError(stage, f"the GPU of {who} failed: {fault}.", _NEXT_ATTEMPT, retryable=True)
    if type(cause).__name__ in OUT_OF_MEMORY or "CUDA error: out of memory" in str(cause):
        said = " ".join(str(cause).partition("\n")[0].split()) or type(cause).__name__
        return StageError(stage, f"{who} ran out of memory: {said}", MORE_MEMORY, retryable=True)
    frames = [f"{Path(m['file']).name}:{m['line']} in {m['function']}" for m in _FRAME.finditer(trace)]
    where = f" ({' < '.join(reversed(frames[-NUM_FRAMES:]))})" if frames else ""
    return StageError(
        stage,
        f"{who} raised {type(cause).__name__}: {cause}{where}",
        "See the traceback in the coordinator's log.",
        retryable=isinstance(cause, OSError),
    )
