"""Kill parts of a real service at random moments and report the findings.

python tests/faults/soak.py --rounds 24 --seed 1 --report docs/reliability.md
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from campaign import run_campaign
from fault_kinds import FAULTS, drawn
from fault_report import as_json, section, write_report


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill parts of a real service at random moments.")
    parser.add_argument("--rounds", type=int, default=24, help="number of faults")
    parser.add_argument("--seed", type=int, default=1, help="seed of faults, moments and jobs")
    parser.add_argument("--kinds", default=",".join(FAULTS), help=f"some of {', '.join(FAULTS)}")
    parser.add_argument("--minutes", type=float, default=90, help="start no round later than this")
    parser.add_argument("--report", type=Path, help="page for the table; a JSON file beside it gets the results")
    parser.add_argument("--home", type=Path, help="home of the service, which is kept (default: a temporary one)")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        parser.error(f"unknown kinds: {', '.join(unknown)}; choose from {', '.join(FAULTS)}")
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"{time.monotonic() - began:6.0f} s  {what}", flush=True)

    with tempfile.TemporaryDirectory(prefix="tandem-faults-") as temporary:
        home, faults = options.home or Path(temporary), drawn(kinds, options.rounds, options.seed)
        campaign = run_campaign(home.absolute(), faults, options.seed, began + 60 * options.minutes, tell)
    chosen = f" --kinds {options.kinds}" if options.kinds != parser.get_default("kinds") else ""
    command = f"python tests/faults/soak.py --rounds {options.rounds} --seed {options.seed}{chosen}"
    result = as_json(campaign, command)
    if options.report:
        write_report(result, options.report)
    print(section(result))
    for finding in campaign.findings:
        print("FINDING", finding)
    return 1 if campaign.findings else 0


if __name__ == "__main__":
    sys.exit(main())
