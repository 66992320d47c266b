"""The GPUs of this machine, asked of the driver's own tool: no library is loaded, and no CUDA context is made."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

COMMAND = "nvidia-smi"
QUERY = ("--query-gpu=index,uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits")
TIMEOUT_S = 30.0


class GpuQueryError(RuntimeError):
    """The driver doesn't answer, or answers something else."""


@dataclass(frozen=True)
class Gpu:
    index: int
    uuid: str
    name: str
    memory_bytes: int
    driver: str


def local_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use; none if there is no driver. Raises GpuQueryError."""
    program = shutil.which(COMMAND)
    if program is None:
        return []
    try:
        run = subprocess.run([program, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GpuQueryError(f"{COMMAND} doesn't answer ({error}).") from None
    if run.returncode:
        said = (run.stdout.strip() or run.stderr.strip()).splitlines() or ["no reason given"]
        if "no devices were found" in said[0].lower():
            return []
        raise GpuQueryError(f"{COMMAND} failed: {said[0]}.")
    gpus = [_parsed(line) for line in run.stdout.splitlines() if line.strip()]
    return _visible(gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _parsed(line: str) -> Gpu:
    try:
        index, uuid, name, mebibytes, driver = (field.strip() for field in line.split(","))
        return Gpu(int(index), uuid, name, int(mebibytes) << 20, driver)
    except ValueError:
        raise GpuQueryError(f"{COMMAND} answered {line!r}, which isn't a GPU with its memory.") from None


def _visible(gpus: list[Gpu], named: str | None) -> list[Gpu]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES names, by index or by the beginning of their UUID, in its order."""
    if named is None:
        return gpus
    names = [name.strip() for name in named.split(",") if name.strip()]
    return [gpu for name in names for gpu in gpus if name == str(gpu.index) or gpu.uuid.startswith(name)]
