"""Compute with a learner and an engine on each device, each in a process of its own, and compare them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from tandem.cli.doctor.report import FaultError, Report
from tandem.cli.gpus import Gpu
from tandem.cluster.engine.setup.settings import engine_environment
from tandem.rl.probe import FLOAT32, compare, tolerance_for
from tandem.rl.tiny.model import resolve_model

DEVICE_TIMEOUT_S = 300.0
"""For one part on one device: several times what the start of vLLM takes."""
LEARNER, ENGINE = "tandem.cli.doctor.try_learner", "tandem.cli.doctor.try_engine"
Device = Literal["cpu", "cuda"]


def check_compute(report: Report, gpus: Sequence[Gpu], device: Device, model: str) -> None:
    """Compare attention with a dense mask, and the engine with the learner, and time both, on every device."""
    if device == "cpu":
        _check_device(report, "CPU", {}, device, model)
    elif not gpus:
        report.check("compute", _no_gpu)
    for gpu in gpus if device == "cuda" else ():
        _check_device(report, f"GPU {gpu.index}", {"CUDA_VISIBLE_DEVICES": gpu.uuid}, device, model)


def _no_gpu() -> str:
    raise FaultError("There is no GPU to compute on. `--device cpu` does the same on the CPU.")


def _check_device(report: Report, name: str, environment: Mapping[str, str], device: Device, model: str) -> None:
    of_learner: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="tandem-doctor-") as directory:

        def learner() -> str:
            of_learner.update(_run(LEARNER, environment, device, model, directory))
            found = of_learner["attention_difference"]
            if not found < FLOAT32.max:
                raise FaultError(
                    f"Logprobs of {of_learner['attention']} and of a dense mask differ by {found:.2g}, more than "
                    f"{FLOAT32.max:g}. Set learners.attention to sdpa, and report this with the versions above."
                )
            return f"{of_learner['attention']} and a dense mask differ by {found:.1g} nats at most"

        if not report.check(f"{name} attention", learner):
            return
        report.check(f"{name} learner", lambda: f"{of_learner['tokens_per_s']:,.0f} trained tokens/s of {model}")

        def engine() -> str:
            of_engine = _run(ENGINE, {**environment, **_engine_environment(device, model)}, device, model, directory)
            found = compare(of_learner["probe"], of_engine["probe"], tolerance_for(of_learner["dtype"]))
            if not found.is_agreement:
                raise FaultError(
                    f"Logprobs of engine and learner don't agree: {found}. Compare the versions above with those of "
                    "`make install`."
                )
            speed = f"{of_engine['tokens_per_s']:,.0f} scored tokens/s of {model}"
            return f"engine and learner differ by {found.max:.1g} nats at most; {speed}"

        report.check(f"{name} engine", engine)


def _engine_environment(device: Device, model: str) -> dict[str, str]:
    return engine_environment(device, resolve_model(model))


def _run(module: str, environment: Mapping[str, str], device: Device, model: str, directory: str) -> dict[str, Any]:
    """Run a part and return what it found. Raises FaultError with the last line that it said."""
    command = [sys.executable, "-m", module, model, device, directory]
    process = subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=DEVICE_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _end(process)
        raise FaultError(f"No answer in {DEVICE_TIMEOUT_S:g} s. See nvidia-smi and dmesg for a hung GPU.") from None
    except BaseException:
        _end(process)
        raise
    answer = next((line for line in reversed(out.splitlines()) if line.startswith("{")), None)
    if process.returncode or answer is None:
        said = [line for line in err.splitlines() if line.strip()] or [f"status {process.returncode}"]
        raise FaultError(f"It failed: {said[-1].strip()}")
    found: dict[str, Any] = json.loads(answer)
    return found


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and its children, which have a session of their own."""
    os.killpg(process.pid, 9)
    process.communicate()
