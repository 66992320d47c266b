"""The example of the README raises the tiny model's reward over the HTTP API."""

import os
import re
import subprocess
import sys

from paths import EXAMPLES

EXAMPLE = EXAMPLES / "quickstart.py"


def test_the_reward_rises(service, tmp_path):
    environment = {**os.environ, "TANDEM_URL": service.url, "TANDEM_API_KEY": service.key, "COLUMNS": "120"}
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert result.returncode == 0, result.stdout + result.stderr  # the example checks the rise itself
    first, last = map(float, re.search(r"from ([\d.]+) to ([\d.]+)", result.stdout).groups())
    assert first < 0.5 and last > 0.8
    assert (tmp_path / "demo-results" / "reward.png").stat().st_size > 5_000


def test_without_a_key_it_prints_how_to_get_one(service, tmp_path):
    environment = {**os.environ, "TANDEM_URL": service.url, "TANDEM_API_KEY": ""}
    result = subprocess.run(
        [sys.executable, str(EXAMPLE)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert result.returncode != 0
    assert "tandem keys create" in result.stderr
