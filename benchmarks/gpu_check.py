"""A first check of a GPU: does the learner compute right on it, and how fast? At most 8 minutes, without internet.

    .venv/bin/python benchmarks/gpu_check.py --output benchmarks/results/gpu_check.json     # on a GPU, whole
    .venv/bin/python benchmarks/gpu_check.py --device cpu --size toy                        # seconds, on any machine

Models of the shapes of Qwen3-0.6B and Qwen3-4B get random weights on the device. Each part has a budget of seconds and
a pass mark; one that fails or runs out of time doesn't stop the others. The exit code is 1 if any part failed.

float32 means float32: torch's matrix products on a GPU stay at "highest" precision, without TF32.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_checks import correctness, speed
from gpu_checks.setting import SIZES, Setting
from rich.console import Console
from rich.table import Table

from tandem.rl.policy import resolve_device

PARTS: dict[str, tuple[Callable[[Setting, dict[str, Any]], list[str]], int]] = {
    "mask": (correctness.mask, 10),
    "attention": (correctness.attention, 80),
    "precision": (correctness.precision, 40),
    "lora": (speed.lora, 20),
    "head": (speed.head, 20),
    "graphs": (correctness.graphs, 90),
    "determinism": (correctness.determinism, 20),
    "rows": (speed.rows, 160),
    "out_of_memory": (correctness.out_of_memory, 40),
}
"""Each part and its budget in seconds on a GPU: 8 minutes together."""


class _OutOfTime(Exception):
    pass


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise _OutOfTime in the block after so many seconds, as soon as Python runs again."""

    def ring(_signal: int, _frame: object) -> None:
        raise _OutOfTime(f"it took longer than its budget of {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(setting: Setting, names: Sequence[str], budget_s: float) -> dict[str, Any]:
    """Run the parts, one after the other, within `budget_s` together, and return what each found."""
    deadline = time.monotonic() + budget_s
    found = {}
    for name in names:
        part, own_budget = PARTS[name]
        began, measured, trace = time.monotonic(), dict[str, Any](), ""
        try:
            with _within(max(0.01, min(own_budget, deadline - began))):
                faults = part(setting, measured)
        except Exception as error:
            faults, trace = [f"{type(error).__name__}: {error}"], traceback.format_exc()
        if setting.is_cuda:
            torch.cuda.empty_cache()
        found[name] = {
            "passed": not faults,
            "faults": faults,
            "seconds": round(time.monotonic() - began, 2),
            "budget_s": own_budget,
            "measured": measured,
            **({"traceback": trace} if trace else {}),
        }
    return found


def machine(setting: Setting) -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(setting.device) if setting.is_cuda else platform.processor() or "CPU",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def table(found: Mapping[str, Any]) -> Table:
    """Return a line for each part: passed or not, the seconds, and the cause of a failure or its main numbers."""
    lines = Table("part", "", "seconds", "found")
    for name, part in found.items():
        said = "; ".join(part["faults"]) if part["faults"] else _summary(part["measured"])
        lines.add_row(name, "pass" if part["passed"] else "FAIL", f"{part['seconds']} of {part['budget_s']}", said)
    return lines


def _summary(measured: Mapping[str, Any]) -> str:
    if "anchor" in measured:
        rows = [
            f"{n}: {row['tokens_per_s']:.0f} tokens/s, MFU {row['mfu_unique']:.1%}"
            for n, row in measured["rows"].items()
        ]
        anchor = measured["anchor"]
        return "; ".join([*rows, f"beside {anchor['tokens_per_s']} and {anchor['mfu']:.1%} of {anchor['what']}"])
    return ", ".join(f"{key} {_short(value)}" for key, value in measured.items() if not isinstance(value, (dict, list)))


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Return the value without NaN and infinity, which JSON has not: unknown numbers become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--size", default="full", choices=tuple(SIZES))
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=tuple(PARTS))
    parser.add_argument("--budget", type=float, default=480, help="seconds for all parts together")
    parser.add_argument("--output", type=Path, help="where to write the results as JSON")
    options = parser.parse_args(arguments)
    setting = Setting(resolve_device(options.device), SIZES[options.size])
    found = run(setting, options.parts, options.budget)
    Console().print(table(found))
    if options.output:
        result = {"machine": machine(setting), "size": options.size, "parts": found}
        options.output.write_text(json.dumps(_plain(result), indent=1) + "\n")
    return 0 if all(part["passed"] for part in found.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
