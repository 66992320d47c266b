"""`tandem train` with the shipped example, against the real service."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import EXAMPLES

EXAMPLE = EXAMPLES / "train" / "largest.yaml"
TANDEM = Path(sys.executable).with_name("tandem")


@pytest.fixture(scope="module")
def finished(service, tmp_path_factory):
    """The directory and the output of a finished run."""
    home = tmp_path_factory.mktemp("home")
    environment = {
        **os.environ,
        "TANDEM_URL": service.url,
        "TANDEM_API_KEY": service.key,
        "TANDEM_HOME": str(home),
        "COLUMNS": "120",
    }
    command = [TANDEM, "train", str(EXAMPLE)]
    result = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stdout + result.stderr
    return home / "runs" / "largest", result.stdout


def rows(directory, kind):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def test_the_reward_rises_on_tasks_that_were_not_trained(finished):
    evaluations = {row["version"]: row["eval/reward/mean"] for row in rows(finished[0], "evaluation")}
    assert list(evaluations) == [0, 4, 8, 12]
    assert evaluations[0] < 0.6 and evaluations[12] > max(0.8, evaluations[0] + 0.3)


def test_rollouts_overlap_training_within_the_policy_lag(finished):
    trained = rows(finished[0], "training")
    assert [row["version"] for row in trained] == list(range(1, 13))
    lags = [row["policy_lag/max"] for row in trained]
    assert lags[0] == 0 and set(lags[1:]) <= {0, 1} and sum(lags) > 6
    assert sum(row["seconds/rollouts_beside_training"] > 0 for row in trained[1:]) > 6


def test_the_run_leaves_plots_metrics_and_a_summary(finished):
    directory, output = finished
    assert (directory / "reward.png").stat().st_size > 5_000
    assert list((directory / "tensorboard").glob("events.out.tfevents.*"))
    last = rows(directory, "training")[-1]
    assert {"loss/train", "loss/entropy", "loss/grad_norm", "tokens/completion", "data/trainer_tokens"} <= set(last)
    assert "version 12 (job 12/12)" in output and "evaluation of version 12" in output
    assert "12 of 12 jobs are trained" in output
