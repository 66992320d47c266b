"""The report over several tasks, on results worked by hand."""

import json
import math

import compare_losses
import pytest
from loss_comparison.overview import overview


def cell(name, finals, differences=None):
    mean = sum(finals) / len(finals)
    return {
        "name": name,
        "lag": 0,
        "intervals": {
            "final_reward": {"mean": mean, "half_width": 0.1, "n": len(finals)},
            "num_steps": {"mean": 2.5, "half_width": 0.1, "n": len(finals)},
        },
        "differences_from_baseline": differences or {},
        "outcomes": {str(seed): {"final_reward": final, "area": final / 2} for seed, final in enumerate(finals)},
    }


def from_baseline(mean, p):
    interval = {"mean": mean, "half_width": 0.01, "n": 3}
    return {"final_reward": {"interval": interval, "p_value": p, "adjusted_p_value": p}}


@pytest.fixture
def results(tmp_path):
    of_task = {
        "one": [cell("cispo", [0.5, 0.6, 0.7]), cell("ppo", [0.5, 0.5, 0.5], from_baseline(-0.1, 0.02)),
                cell("trl-grpo", [0.6, 0.7, 0.8], from_baseline(0.1, 0.2))],
        "two": [cell("cispo", [0.8, 0.8, 0.8]), cell("ppo", [0.9, 0.9, 0.9], from_baseline(math.nan, math.nan)),
                cell("trl-grpo", [0.7, 0.7, 0.7], from_baseline(-0.1, math.nan))],
    }  # fmt: skip
    paths = {task: tmp_path / task / "results.json" for task in [*of_task, "never run"]}
    for task, cells in of_task.items():
        paths[task].parent.mkdir()
        paths[task].write_text(json.dumps({"cells": cells}))
    return paths


def row(text, *begin):
    (found,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(begin))]
    return [column.strip() for column in found.strip("|").split("|")]


def test_tandem_and_its_peer_are_compared_seed_by_seed_in_each_task(results):
    text = overview(results)
    # ppo - trl-grpo: -0.1, -0.2, -0.3 in the first task, three times 0.2 in the second
    assert row(text, "one", "ppo", "trl-grpo")[5:8] == ["2.5", "3", "-0.200 ± 0.248"]
    assert row(text, "two", "ppo", "trl-grpo")[6:8] == ["3", "+0.200 ± 0.000"]
    assert "trl-cispo" not in text and "never run" not in text


def test_a_peer_without_its_counterpart_is_left_out(results):
    results["one"].write_text(json.dumps({"cells": [cell("cispo", [0.5]), cell("trl-grpo", [0.6])]}))
    peers = overview(results).split("## On-policy")[0]
    assert "| one |" not in peers and "| two |" in peers


def test_differences_from_the_baseline_are_bold_if_significant(results):
    text = overview(results)
    assert row(text, "cispo") == ["cispo", "0.600 ± 0.100", "0.800 ± 0.100"]
    assert row(text, "ppo")[1:] == ["**-0.100 ± 0.010**", "–"]
    assert row(text, "trl-grpo")[1:] == ["+0.100 ± 0.010", "-0.100 ± 0.010"]


def test_an_option_replaces_the_setting_of_a_named_task():
    options = compare_losses.parse(["--tasks", "calculator", "--max-tokens", "20", "--num-versions", "3"])
    settings = compare_losses.settings_of(options, "calculator")
    assert (settings.max_tokens, settings.packed_sequence_length, settings.num_versions) == (20, 512, 3)
    assert settings.environment.endswith("Calculator")


def test_a_named_task_and_an_environment_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        compare_losses.main(["--tasks", "largest", "--environment", "a:B"])
    assert "--environment" in capsys.readouterr().err
