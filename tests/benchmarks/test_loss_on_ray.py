"""The comparison as a job submitted to a Ray cluster."""

import json
import sys

import pytest
from paths import ROOT
from ray_head import ray_head

BENCHMARKS = ROOT / "benchmarks"


def test_a_submitted_comparison_gives_what_one_process_gives(small, tmp_path):
    from loss_comparison.configurations import configuration
    from loss_comparison.settings import RunRequest
    from loss_comparison.training_run import train

    options = ["--configurations", "ppo", "--seeds", "1", "--lags", "0", "--output", str(tmp_path / "out")]
    for name in small.model_fields_set:
        options += ["--" + name.replace("_", "-"), str(getattr(small, name))]
    with ray_head(tmp_path / "head", num_cpus=2) as head:
        command = [sys.executable, "compare_losses.py", *options]
        done = head.run("ray", "job", "submit", "--working-dir", str(BENCHMARKS), "--", *command, timeout_s=900)
    assert done.returncode == 0, done.stdout
    assert "4 of 4 runs are in" in done.stdout  # two trained, two replayed
    (made,) = (tmp_path / "out" / "runs").glob("training.ppo.lag0.seed0.*.json")
    here = train(RunRequest.of("training", configuration("ppo"), 0, 0, small))
    for own, other in zip(json.loads(made.read_bytes())["curve"], here["curve"], strict=True):
        assert own["eval"] == pytest.approx(other["eval"], abs=1e-5)
    assert "| ppo | 1 |" in (tmp_path / "out" / "report.md").read_text()
