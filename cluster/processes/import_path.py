"""Keep the directory where a command was called out of the import path of the processes that it starts.

There, a user's `secrets.py` or `torch.py` would replace the module of that name in every process of the service. Ray
adds the driver's directory to the path of its workers, `python -c` (as multiprocessing calls it) adds its own, and an
empty entry of PYTHONPATH means the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray.job_config

import tandem

SAFE_PATH = "PYTHONSAFEPATH"
PATH = "PYTHONPATH"
LIKE_PYTHON = {SAFE_PATH: ""}
"""The variables of a user's own program, which imports its neighbours as Python does by default."""


class JobConfig(ray.job_config.JobConfig):  # type: ignore[misc]  # Ray has no types
    """Ray's configuration of a driver whose workers don't get its directories in their import path."""

    def __init__(self) -> None:
        super().__init__()
        self._py_driver_sys_path = _NoDirectories()


class _NoDirectories(list[str]):
    def extend(self, directories: Iterable[str]) -> None:
        """Ignore them: Ray adds the directories of the script and of the caller."""


@contextmanager
def children_import_safely() -> Iterator[None]:
    """Python processes that are started in the block, and their children, don't import from their working directory."""
    before = {name: os.environ.get(name) for name in (SAFE_PATH, PATH)}
    os.environ[SAFE_PATH] = "1"
    if python_path := before[PATH]:
        os.environ[PATH] = without_working_directory(python_path)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def without_working_directory(python_path: str) -> str:
    """Return a PYTHONPATH without its entries "" and ".". The directory from which Tandem is imported stays."""
    package = Path(tandem.__file__).parent.parent
    entries = python_path.split(os.pathsep)
    kept = [entry for entry in entries if os.path.normpath(entry) != os.curdir]
    if len(kept) < len(entries) and package == Path.cwd():
        kept.append(str(package))
    return os.pathsep.join(dict.fromkeys(kept))
