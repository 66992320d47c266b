"""The files that docs/tutorial.md has readers write work as they stand there."""

import asyncio
import json
import os
import re
import subprocess
import sys

import pytest
from paths import ROOT

from tandem.rl.environments.loading import load_environment
from tandem.runs.config import load_task

TEXT = (ROOT / "docs/tutorial.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    """A reader's project after the fifth step."""
    (tmp_path / "cautious.py").write_text(PYTHON[0])
    [task_file] = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "cautious.yaml").write_text(task_file)
    return tmp_path


def run(*command, cwd, **variables):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=True)


class Saying:
    """A chat whose model always gives one answer."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    async def __call__(self, messages, *, tools=None, **sampling):
        self.asked.append(messages[-1]["content"])
        return {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": self.answer}}


def test_its_environment_rewards_what_it_says(folder):
    task_file = load_task(folder / "cautious.yaml")
    environment = load_environment(task_file.environment.class_, task_file.environment.options, folder)
    train, held_out = environment.tasks("train"), environment.tasks("eval")
    assert len(train) == task_file.rollouts.groups_per_job and set(train).isdisjoint(held_out)
    rewards = {}
    for answer in ("yes", "no", "maybe"):
        chat = Saying(answer)
        rollouts = [asyncio.run(environment.rollout(chat, task)) for task in held_out]
        assert {"Just say yes or no", "Just say yes, maybe or no"} < set(chat.asked)
        rewards[answer] = [rollout.reward for rollout in rollouts]
        assert [rollout.metrics["is_offered"] for rollout in rollouts] == [answer in task[1] for task in held_out]
    assert [sum(rewards[answer]) for answer in ("yes", "no", "maybe")] == [0, 2, 6]


def test_its_check_of_the_file_runs(folder):
    [code] = re.findall(r'^python -c "(.*)"$', TEXT, re.MULTILINE)
    assert run(sys.executable, "-c", code, cwd=folder).stdout.rstrip().endswith("1.0")


def test_its_script_shows_the_evaluations_of_a_run(folder):
    metrics = folder / ".tandem/runs/cautious/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    rows = [
        {"kind": "evaluation", "version": 0, "eval/reward/mean": 0.25},
        {"kind": "training", "version": 1, "reward/mean": 0.3},
        {"kind": "evaluation", "version": 5, "eval/reward/mean": 1.0},
    ]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = run(sys.executable, "-c", PYTHON[1], cwd=folder, HOME=str(folder)).stdout
    assert re.findall(r"version (\d+) .* ([\d.]+)", shown) == [("0", "0.25"), ("5", "1.0")]


def test_the_metrics_it_explains_are_documented():
    explained = re.findall(r"^\| `([\w/]+)` \|", TEXT, re.MULTILINE)
    reference = (ROOT / "docs/train.md").read_text().split("## metrics.jsonl")[1]
    assert len(explained) >= 5
    for name in explained:
        assert name.split("/")[0] in reference, name
