"""Imports what vLLM's core needs on a CPU. Python's fork server imports this module; cores are forked from it.

A module that can't be imported here is imported by the core itself, which reports why.
"""

from __future__ import annotations

import gc
import importlib
from contextlib import suppress

from tandem.cluster.processes.heap import collection_paused

# The core, its worker, and what they import on first use.
MODULES = (
    "vllm.v1.engine.core",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.cpu_model_runner",
    "vllm.lora.worker_manager",
    "tandem.cluster.engine.vllm_changes.worker_extension",
    "tandem.cluster.engine.vllm_changes.clean_blocks",
)

with collection_paused():
    for _module in MODULES:
        with suppress(Exception):
            importlib.import_module(_module)
gc.freeze()  # the collector would write to every object, which copies the memory that a forked core shares
