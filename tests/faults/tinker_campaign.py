"""Kill parts of a service while runs train through the `tinker` SDK, and compare with runs that nothing disturbs.

python tests/faults/tinker_campaign.py --rounds 50 --faults 10 --seed 1
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fault_kinds import FAULTS, Fault, drawn
from service_process import ServiceProcess, wait_until
from tinker_calls import Outcome, Plan, check_counts, differences, draw, follow, versions

SETTINGS = {
    "TANDEM_COORDINATOR__LEASE_S": "6",
    "TANDEM_DEADLINES__LOAD_S": "20",
    "TANDEM_DEADLINES__STEP_S": "10",
    "TANDEM_DEADLINES__CHECKPOINT_S": "20",
    "TANDEM_TINKER__ANCHOR_STEPS": "3",
}
"""Shorter than the defaults, so that a run is also made again from later anchors."""
KINDS = ("kill-learner", "kill-engine", "kill-engine-core", "kill-api", "kill-proxy", "kill-coordinator", "kill-all")
NUM_RUNS = 4
MAX_DELAY_S = 3.0  # from the end of a round to the fault, drawn at random
PROGRESS_S = 900.0
REQUEST_S = 60.0


@dataclass(frozen=True)
class TinkerCampaign:
    injected: tuple[str, ...]
    """The faults, in order."""
    num_rounds: int
    num_answers: int
    num_versions: int
    seconds_undisturbed: float
    seconds_disturbed: float
    findings: tuple[str, ...]
    """Every broken promise."""


class Progress:
    """Counts finished rounds of all runs."""

    def __init__(self) -> None:
        self.rounds, self._lock = 0, threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.rounds += 1


def run_campaign(
    home: Path, num_rounds: int, faults: Sequence[Fault], seed: int, tell: Callable[[str], None] = lambda _: None
) -> TinkerCampaign:
    """Let four runs take `num_rounds` rounds together, twice: undisturbed, then with all faults at random moments."""
    plans = [draw(1000 * seed + run, num_rounds // NUM_RUNS + (run < num_rounds % NUM_RUNS)) for run in range(NUM_RUNS)]
    with ServiceProcess(home, SETTINGS) as service:
        key = service.create_key()
        service.start()
        tell("undisturbed runs")
        began = time.monotonic()
        undisturbed = follow(service.url, f"tml-{key}", plans)
        tell(f"took {(between := time.monotonic()) - began:.0f} s")
        findings = list[str]()
        disturbed = _disturbed(service, key, plans, faults, random.Random(seed), findings, tell)
        ended = time.monotonic()
        tell(f"disturbed runs took {ended - between:.0f} s")
        with service.http(key, REQUEST_S) as http:
            made = [[versions(http, outcome.run_id) for outcome in runs] for runs in (undisturbed, disturbed)]
    for plan, before, after, expected, found in zip(plans, undisturbed, disturbed, *made, strict=True):
        findings += differences(plan, before, after)
        findings += check_counts(plan, after, found)
        if found != expected:
            findings.append(f"The versions of run {plan.seed} are {found}; undisturbed they are {expected}.")
    return TinkerCampaign(
        injected=tuple(fault.name for fault in faults),
        num_rounds=num_rounds,
        num_answers=sum(len(outcome.answers) for outcome in disturbed),
        num_versions=sum(map(len, made[1])),
        seconds_undisturbed=between - began,
        seconds_disturbed=ended - between,
        findings=tuple(findings),
    )


def _disturbed(
    service: ServiceProcess,
    key: str,
    plans: Sequence[Plan],
    faults: Sequence[Fault],
    rng: random.Random,
    findings: list[str],
    tell: Callable[[str], None],
) -> list[Outcome]:
    """Follow the plans while all faults are injected, spread over the rounds."""
    progress, total = Progress(), sum(len(plan.rounds) for plan in plans)
    with ThreadPoolExecutor(1, "runs") as pool:
        runs = pool.submit(follow, service.url, f"tml-{key}", plans, progress)
        for number, fault in enumerate(faults):
            due = number * total // len(faults)
            if not wait_until(lambda: progress.rounds >= due or runs.done(), PROGRESS_S):  # noqa: B023 (used at once)
                findings.append(f"{progress.rounds} of {total} rounds had ended {PROGRESS_S:g} s after a fault.")
                break
            time.sleep(rng.uniform(0, MAX_DELAY_S))
            if runs.done():
                findings.append(f"All rounds had ended before {fault.what}.")
                break
            tell(f"round {progress.rounds} of {total}: {fault.what}")
            fault.inject(service, rng)
            if fault.is_started_again:
                service.start()
        return runs.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help="of all four runs together")
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1, help="seed of calls, faults and moments")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"some of {', '.join(FAULTS)}")
    options = parser.parse_args()
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="tandem-faults-") as directory:
        faults = drawn(options.kinds.split(","), options.faults, options.seed)
        campaign = run_campaign(Path(directory), options.rounds, faults, options.seed, tell)
    print(campaign)
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    raise SystemExit(main())
