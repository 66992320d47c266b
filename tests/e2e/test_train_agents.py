"""`tandem train` with agents that call the model themselves: the shipped graph of LangGraph, and verifiers."""

import asyncio

import pytest
import yaml
from paths import EXAMPLES, ROOT

from tandem.client import capture, judge_group
from tandem.runs.directory import RunDirectory
from tandem.runs.reporting.report import Progress
from tandem.runs.run import begin_or_resume, plan, run

QUESTION = {"role": "user", "content": "What is 3 plus 4?"}
SMALL = {"groups_per_job": 4, "group_size": 4, "max_tokens": 32}
TRAINING = {"jobs": 2, "experimental_config": {"learning_rate": 2e-3, "packed_sequence_length": 512}}


class Recording:
    """A report that keeps its rows."""

    def __init__(self):
        self.progress, self.said, self.rows = Progress(), [], []

    def say(self, sentence):
        self.said.append(sentence)

    def row(self, row):
        self.rows.append(row)


@pytest.fixture
def trained(service, tmp_path):
    """Run a task to its end, and return its rows and all trajectories of its batches."""

    def trained(task):
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump(task | {"training": TRAINING, "output": {"keep_batches": True}}))
        report, planned = Recording(), plan(path)
        with RunDirectory(tmp_path / "run") as directory:
            begin_or_resume(directory, planned.task)
            asyncio.run(run(planned, directory, service.url, service.key, report))
            return [row for row in report.rows if row["kind"] == "training"], report.said

    return trained


def check(rows, turns):
    assert [row["version"] for row in rows] == [1, 2]
    for row in rows:
        assert row["rollouts/num"] == 16 and row["rollouts/turns"] > turns and row["rollouts/failed"] == 0
        assert row["tokens/completion"] > 0 and row["tokens/retokenised"] == row["tokens/untrainable"] == 0
        assert row["policy_lag/max"] <= 1


def test_the_graph_of_the_example_trains(trained):
    task = yaml.safe_load((EXAMPLES / "train" / "langgraph_agent.yaml").read_text())
    task["environment"] = str(EXAMPLES / "train" / task["environment"])
    rows, _ = trained({**task, "name": "graph", "rollouts": SMALL, "evaluation": None})
    check(rows, turns=16)
    assert rows[0]["environment/calculated"] > 0.5


def test_a_verifiers_environment_trains(trained, monkeypatch, tmp_path):
    monkeypatch.setattr("verifiers.v1.runtimes.subprocess.CACHE_DIR", tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "runs"))
    local = {"agent": {"runtime": {"type": "subprocess"}}}
    environment = {"class": "verifiers:sum_taskset", "options": {"env": local}}
    rows, _ = trained({"name": "sums", "environment": environment, "rollouts": SMALL})
    check(rows, turns=16)
    assert rows[0]["environment/reward/calculated"] > 0.3


def test_a_model_of_the_service_judges_and_the_judge_is_not_captured(service):
    """The format keeps the tiny model to scores; left alone, it would never end."""
    form = {"regex": r'\{"1": \{"explanation": "[a-z ]{1,9}", "score": 0\.[0-9]\}, "2": 0\.[0-9]\}'}
    trajectories = [
        {"messages_and_choices": [QUESTION, {"role": "assistant", "content": answer}]}
        for answer in ("3 plus 4 is 7.", "blue")
    ]
    with capture() as rollout:
        judged = judge_group(service.openai(), "tandem/tiny", trajectories, structured_outputs=form)
        scores = asyncio.run(judged)
    assert all(0 <= one.score < 1 for one in scores) and scores[0].explanation and not scores[1].explanation
    assert rollout.exchanges == {}
