"""Python graders: a program of the user, in a process of its own with limits.

The process gets the answer and the row as JSON, an empty environment and an empty directory, and limits on time, memory
and files. It isn't a sandbox: it runs as the user of the service and can reach the network. Services therefore run no
such programs unless their operator allows them.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tandem.rl.graders.errors import GraderError

MAX_OUTPUT_BYTES = 64 << 10
_RUNNER = """
import json, resource, sys
out, sys.stdout = sys.stdout, sys.stderr
given = json.load(sys.stdin)
for name, value in given["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
names = {"__name__": "grader"}
exec(compile(given["source"], "grader.py", "exec"), names)
print(json.dumps(float(names["grade"](given["sample"], given["item"]))), file=out)
"""


@dataclass(frozen=True)
class ProgramLimits:
    seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 20

    def of_process(self) -> dict[str, int]:
        """Return the limits that the process sets for itself, before it runs the program."""
        return {
            "RLIMIT_CPU": math.ceil(self.seconds),
            "RLIMIT_AS": self.memory_bytes,
            "RLIMIT_FSIZE": self.file_bytes,
            "RLIMIT_CORE": 0,
        }


async def run_program(source: str, sample: dict[str, Any], item: Any, limits: ProgramLimits = ProgramLimits()) -> float:
    """Return what `grade(sample, item)` of the program returns, a finite number. Raise GraderError."""
    given = json.dumps({"source": source, "sample": sample, "item": item, "limits": limits.of_process()}).encode()
    with tempfile.TemporaryDirectory(prefix="tandem-grader-") as directory:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            _RUNNER,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=directory,
            env={"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(limits.seconds):
                output, errors = await _outputs(process, given)
        except TimeoutError:
            reason = f"the program took longer than {limits.seconds:g} s"
            raise GraderError("python_grader_runtime_error", reason) from None
        finally:
            await _end(process)
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines()
        reason = lines[-1][:500] if lines else f"the program ended with status {process.returncode}"
        raise GraderError("python_grader_runtime_error", reason)
    return _number(output)


async def _outputs(process: asyncio.subprocess.Process, given: bytes) -> tuple[bytes, bytes]:
    assert process.stdin and process.stdout and process.stderr
    process.stdin.write(given)
    with suppress(ConnectionError):  # it ended without reading
        await process.stdin.drain()
    process.stdin.close()
    output, errors = await asyncio.gather(_tail(process.stdout), _tail(process.stderr))
    await process.wait()
    return output, errors


async def _tail(stream: asyncio.StreamReader) -> bytes:
    """Return the end of a stream, in memory that doesn't grow with it."""
    kept = b""
    while part := await stream.read(MAX_OUTPUT_BYTES):
        kept = (kept + part)[-MAX_OUTPUT_BYTES:]
    return kept


async def _end(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def _number(output: bytes) -> float:
    try:
        value = json.loads(output)
    except ValueError:
        raise GraderError("python_grader_runtime_error", "the program printed no number") from None
    if not isinstance(value, float) or not math.isfinite(value):
        raise GraderError("python_grader_runtime_error", f"grade() returned {value}; it must return a finite number")
    return value
