"""Why vLLM's core has died, as far as the log says that it shares with the process that started it.

vLLM itself only says that the core is dead: its error doesn't leave the core's process.
"""

from __future__ import annotations

import re
from pathlib import Path

from tandem.cluster.processes.process_log import error_log

TAIL_BYTES = 1 << 18
LONGEST = 300
_ERRORS = re.compile(
    r"(?:\b(?:torch\.)?(?:cuda\.)?(?:OutOfMemoryError|AcceleratorError)|\b\w*DistBackendError|\bMemoryError): [^\n]+"
    r"|\bRuntimeError: [^\n]*(?:CUDA|NCCL|cuDNN) error[^\n]*|\bRuntimeError: [^\n]*DefaultCPUAllocator[^\n]*"
)
"""As Python ends a traceback."""
_SHORTAGE = re.compile("OutOfMemoryError|MemoryError|out of memory|can't allocate memory|ALLOC_FAILED")
MORE_MEMORY = (
    "Leave the engine more memory: lower engine.max_num_seqs or max_model_len, or engine.gpu_memory_utilization, so "
    "that the KV cache takes less."
)


def last_error(log: Path | None = None) -> str:
    """Return the last error of memory, GPU or network in a log as a sentence to append, "" if there is none.

    By default in the log of this process, which Ray keeps.
    """
    log = log or error_log()
    try:
        if log is None or not log.is_file():
            return ""
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            said = _ERRORS.findall(file.read().decode(errors="replace"))
    except OSError:
        return ""
    if not said:
        return ""
    cause = said[-1].strip()[:LONGEST].rstrip(".")
    return f" Its log says: {cause}.{f' {MORE_MEMORY}' if _SHORTAGE.search(cause) else ''}"
