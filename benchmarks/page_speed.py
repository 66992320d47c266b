"""The speed of the page in chromium: a model of 1,000 versions, and 10,000 trajectories.

    python benchmarks/page_speed.py

Runs tests/web/measure_speed.py, which serves such data over SQLite on this machine, and writes
benchmarks/results/page_speed.json. Chromium shares the machine with the service, so the seconds include both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "page_speed.json"


def main() -> None:
    measure = ROOT / "tests" / "web" / "measure_speed.py"
    command = [sys.executable, "-m", "pytest", str(measure), "--quiet", "--capture=no"]
    environment = {**os.environ, "TANDEM_SPEED_RESULT": str(RESULT)}
    status = subprocess.run(command, cwd=ROOT, env=environment).returncode
    if status == 0:
        print(RESULT.read_text())
    sys.exit(status)


if __name__ == "__main__":
    main()
