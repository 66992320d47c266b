"""The command line and environment of a user's program."""

from __future__ import annotations

import shlex
import site
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tandem
from tandem.cluster.processes.granted_gpus import CUDA_VISIBLE_DEVICES
from tandem.cluster.processes.import_path import LIKE_PYTHON
from tandem.serve.modelarts.running import workers
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec


@dataclass(frozen=True)
class UserProgram:
    """A boot file with its arguments, on `num_workers` workers."""

    directory: Path
    """The code directory, which becomes the working directory of the job."""
    boot_file: str
    """Relative to the code directory."""
    arguments: Sequence[str]
    spec: ResourceSpec
    num_workers: int

    def entrypoint(self, ray_address: str) -> str:
        """Return the command line, quoted so that the shell has nothing to interpret.

        It sets the cluster's address, because Ray would give the job that of the newest cluster on the machine. A
        program without GPUs sees none, which Ray wouldn't see to. Ray actors that it starts get theirs all the same.
        """
        environment = [f"RAY_ADDRESS={ray_address}"]
        if self.spec.num_gpus == 0 or self.num_workers > 1:  # the leader of several workers computes nothing
            environment.append(f"{CUDA_VISIBLE_DEVICES}=")
        program = [sys.executable, "-u", self.boot_file, *self.arguments]
        if self.num_workers > 1:
            spec = [str(self.num_workers), str(self.spec.num_cpus), str(self.spec.num_gpus)]
            program = [sys.executable, "-u", "-m", workers.__name__, *spec, *program]
        return shlex.join(["env", *environment, *program])

    def environment(self) -> dict[str, str]:
        """Return the environment variables."""
        path = python_path(tandem.__file__)
        return {"PYTHONUNBUFFERED": "1", **LIKE_PYTHON} | ({"PYTHONPATH": path} if path else {})


def python_path(package_file: str) -> str | None:
    """Return the directory from which a program can import the package that has this `__init__.py`.

    Links are not resolved, because the package is found only through them. Returns None for site-packages: Python
    searches it anyway, and in PYTHONPATH it would come before the standard library.
    """
    directory = Path(package_file).parent.parent
    installed = [sysconfig.get_path("purelib"), *site.getsitepackages(), site.getusersitepackages()]
    return None if directory in map(Path, installed) else str(directory)
