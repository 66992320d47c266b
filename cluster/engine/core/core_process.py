"""Starts vLLM's engine core without importing vLLM twice in a row.

By itself, vLLM starts the core as a new process once the process that asks for it has imported vLLM; then that process
imports vLLM too, which takes most of an engine's start. `preload_core` starts a process that imports it at the same
time, from which the core is forked later: Python's fork server, which has no threads and no CUDA.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

IMPORTS = "tandem.cluster.engine.core.core_imports"
# vLLM preloads the same for a core that it spawns (vllm/platforms/cpu.py): a faster allocator, and torch's OpenMP.
LIBRARIES = (("vllm", "libs/libtcmalloc_minimal*.so*"), ("torch", "lib/libgomp*.so*"))


def preload_core() -> None:
    """Start to import what a core on a CPU needs, in a process of its own. Returns at once; repeats are harmless."""
    forkserver.set_forkserver_preload([IMPORTS])
    with _libraries_preloaded():
        forkserver.ensure_running()


@contextmanager
def preloaded_core() -> Iterator[None]:
    """In the block, vLLM forks its core from the process of `preload_core`."""
    utils: Any = importlib.import_module("vllm.v1.engine.utils")
    original = utils.get_mp_context
    utils.get_mp_context = _Context
    try:
        yield
    finally:
        utils.get_mp_context = original


class _CoreProcess(ForkServerProcess):
    """Runs with the environment at its start, like a spawned process: vLLM sets variables just before."""

    def start(self) -> None:
        self._environment = dict(os.environ)
        super().start()

    def run(self) -> None:
        # Only what has changed: rewriting the rest would keep setproctitle from naming the process.
        os.environ.update(dict(self._environment.items() - os.environ.items()))
        super().run()


class _Context(ForkServerContext):
    Process = _CoreProcess


@contextmanager
def _libraries_preloaded() -> Iterator[None]:
    before = os.environ.get("LD_PRELOAD")
    libraries = [before] if before else []
    for package, pattern in LIBRARIES:
        libraries += [str(file) for file in sorted(_directory(package).glob(pattern))[:1]]
    os.environ["LD_PRELOAD"] = ":".join(libraries)
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before


def _directory(package: str) -> Path:
    """Return the directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, package
    return Path(spec.origin).parent
