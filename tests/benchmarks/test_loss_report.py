"""The report shows the numbers of the runs, censored and missing ones included."""

import pytest
from loss_comparison.configurations import CONFIGURATIONS, TRL_CONFIGURATIONS
from loss_comparison.plots import plot_areas, plot_curves, plot_replay
from loss_comparison.report import render
from loss_comparison.settings import Settings
from loss_comparison.summary import cells, replayed

NAMES = ["cispo", "ppo", "trl-grpo"]


def run(name, seed, rewards, lag=0, kind="training"):
    curve = [
        {
            "version": version,
            "num_steps": 2,
            "loss/grad_norm": 0.5,
            "loss/clip_fraction": 0.1,
            "eval": {"reward": reward, "kl_base": 0.2, "entropy": 0.3, "sampler_learner_difference": 2e-6},
        }
        for version, reward in enumerate(rewards)
    ]
    return {"request": {"kind": kind, "name": name, "seed": seed, "lag": lag}, "curve": curve, "cpu_seconds": 2.0}


@pytest.fixture
def runs():
    every = []
    for seed in range(4):
        shift = 0.01 * seed
        every += [
            run("cispo", seed, [0.3, 0.6 + shift, 0.9]),
            run("ppo", seed, [0.3, 0.4 + shift / 2, 0.5 if seed else 0.9]),
            run("trl-grpo", seed, [0.3, 0.6 + shift, 0.9], kind="trl"),
            run("cispo", seed, [0.3, 0.5, 0.6], lag=3),
        ]
    return every


@pytest.fixture
def replays():
    found = [run(name, 0, [0.3, 0.5, 0.7], kind="replay") for name in ("cispo", "ppo")]
    for result, cosine in zip(found, (1.0, 0.8), strict=True):
        for record in result["curve"][1:]:
            record["at_stored_policy"] = {
                "cosine_to_baseline": cosine, "length_over_baseline": 0.5, "loss/clip_fraction": 0.1,
            }  # fmt: skip
    return found


def report(runs, replays=(), missing=()):
    how = {
        "command": "python benchmarks/compare_losses.py", "date": "2026-01-02", "commit": "abc1234",
        "machine": "2 cores", "versions": "torch 2", "planned": 20, "missing": list(missing),
        "sampler_difference": 2e-6, "replay": {"seed": 0, "lag": 3, "digest": "d" * 64, "num_batches": 2},
    }  # fmt: skip
    configurations = [one for one in (*CONFIGURATIONS, *TRL_CONFIGURATIONS) if one.name in NAMES]
    return render(cells(runs, NAMES, 0.8), replayed(list(replays), NAMES), configurations, Settings(), 0.8, how)


def row(text, name, section):
    """The first table row of `name` after the heading `section`, as cells."""
    lines = text[text.index(section) :].splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {name} |")).split("|")[1:-1]]


def test_it_has_every_configuration_with_its_numbers(runs):
    text = report(runs)
    cispo = row(text, "cispo", "## On-policy")
    assert cispo[1] == "4"
    assert cispo[2].startswith("0.758 ±")  # the mean of (0.6 + shift + 0.9) / 2 over the seeds
    assert cispo[4] == "2.0 ± 0.0" and cispo[10] == "2.0 ± 0.0"
    assert row(text, "cispo", "## With a lag of 3")[2].startswith("0.550")
    assert "abc1234" in text and "2026-01-02" in text and "shared" in text


def test_censored_runs_are_counted_and_make_a_lower_bound(runs):
    assert row(report(runs), "ppo", "## On-policy")[4] == "≥ 2.0 ± 0.0 (1 of 4 reached it)"


def test_significant_differences_are_listed(runs):
    text = report(runs)
    assert "Significantly different from `cispo`" in text and "`ppo` (area -0.1" in text
    same = [result for result in runs if result["request"]["name"] != "ppo"]
    assert "No configuration differs significantly from `cispo`" in report(same)


def test_missing_runs_are_reported(runs):
    assert "not finished: 2 of 20 planned runs" in report(runs, missing=["a", "b"])
    assert "not finished" not in report(runs)


def test_one_seed_gives_no_interval_and_no_conclusion(runs):
    text = report([result for result in runs if result["request"]["seed"] == 0])
    assert row(text, "cispo", "## On-policy")[2] == "0.750"
    assert "Nothing about differences" in text


def test_replays_have_a_table_of_their_own(runs, replays):
    text = report(runs, replays)
    assert row(text, "ppo", "## Replay")[1:5] == ["0.8000", "0.800", "0.50", "0.100"]
    assert "lag 3" in text and "d" * 16 in text


def test_the_plots_are_pictures(runs, replays, tmp_path):
    every = cells(runs, NAMES, 0.8)
    plot_curves(every, 0.8, tmp_path / "curves.png")
    plot_areas(every, tmp_path / "areas.png")
    plot_replay(replayed(replays, NAMES), tmp_path / "replay.png")
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000
