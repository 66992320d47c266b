"""Metrics of batches and jobs, computed by hand, and their output."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tandem.rl.environments.rollouts import RolledOutGroup, RolloutFailure
from tandem.rl.trajectories import Trajectory, TrajectoryGroup
from tandem.runs.errors import PolicyLagError
from tandem.runs.evaluating import versions_to_evaluate
from tandem.runs.ledger import Ledger
from tandem.runs.reporting.console import PlainConsole
from tandem.runs.reporting.metrics import causes, loss_metrics, oldest_versions, rollout_metrics
from tandem.runs.reporting.plot import plot_rewards
from tandem.runs.reporting.report import Progress
from tandem.runs.reporting.scalars import ScalarWriter
from tandem.runs.reporting.stopwatch import Stopwatch
from tandem.runs.reporting.terminal import TerminalReport, line, now


def choice(version, num_tokens=2, finish_reason="stop"):
    return {
        "index": 0,
        "finish_reason": finish_reason,
        "message": {"role": "assistant", "content": "a"},
        "token_ids": [1] * num_tokens,
        "prompt_token_ids": [1, 2, 3],
        "policy_version": version,
    }


def trajectory(reward, *choices, **metrics):
    return Trajectory(messages_and_choices=[{"role": "user", "content": "q"}, *choices], reward=reward, metrics=metrics)


def group(*trajectories, failures=()):
    return RolledOutGroup(
        TrajectoryGroup(trajectories=list(trajectories)),
        tuple(RolloutFailure(index, error, 1.0) for index, error in enumerate(failures)),
    )


GROUPS = [
    group(trajectory(1, choice(4), right=True), trajectory(0, choice(3), choice(4, 5, "length"), right=False)),
    group(trajectory(2, choice(2)), failures=[TimeoutError("took long"), ValueError("bad"), ValueError("bad")]),
]


def test_metrics_of_rollouts():
    metrics = rollout_metrics(GROUPS)
    assert metrics["reward/mean"] == 1 and metrics["reward/std"] == pytest.approx(math.sqrt(2 / 3))
    assert (metrics["reward/min"], metrics["reward/max"]) == (0, 2)
    assert metrics["reward/std_in_group"] == (0.5 + 0) / 2
    assert (metrics["rollouts/num"], metrics["rollouts/failed"], metrics["rollouts/turns"]) == (3, 3, 4)
    assert (metrics["tokens/prompt"], metrics["tokens/completion"]) == (12, 2 + 2 + 5 + 2)
    assert metrics["rollouts/cut_off"] == 1
    assert (metrics["rollouts/failed/TimeoutError"], metrics["rollouts/failed/ValueError"]) == (1, 2)
    assert metrics["environment/right"] == 0.5


def test_means_of_large_values_and_metrics_that_were_left_out():
    large = [trajectory(0, choice(1)).model_copy(update={"metrics": {"n": 1.5e308}}) for _ in range(4)]
    left_out = replace(group(*large), dropped_metrics=("accuracy", "accuracy"))
    metrics = rollout_metrics([left_out])
    assert metrics["environment/n"] == 1.5e308 and metrics["rollouts/metric_left_out/accuracy"] == 2


def test_groups_of_the_same_tokens_are_counted():
    other = choice(1) | {"token_ids": [9, 9]}
    same = group(trajectory(0, choice(1)), trajectory(1, choice(2)))
    different = group(trajectory(0, choice(1)), trajectory(1, other))
    longer = group(trajectory(0, choice(1)), trajectory(1, choice(1), choice(1)))
    assert rollout_metrics([same, different, longer, group(trajectory(0, choice(1)))])["rollouts/identical_groups"] == 1


def test_causes_are_named_most_frequent_first():
    assert causes(GROUPS) == "2 × ValueError: bad; 1 × TimeoutError: took long"


def test_the_oldest_turn_counts_also_in_further_conversations():
    further = {"messages_and_choices": [{"role": "user", "content": "q"}, choice(1)]}
    split = trajectory(0, choice(7)).model_copy(update={})
    split = Trajectory.model_validate({**split.model_dump(), "additional_histories": [further]})
    assert oldest_versions([*GROUPS, group(split)]) == [4, 3, 2, 1]


def test_a_turn_of_unknown_version_is_named():
    unknown = choice(3) | {"policy_version": None}
    with pytest.raises(PolicyLagError, match=r"Group 1, trajectory 0, turn 1"):
        oldest_versions([GROUPS[0], group(trajectory(0, choice(3), unknown))])


def test_losses_are_means_and_counts_are_sums():
    steps = [
        {"loss/train": 1.0, "data/step_trainer_tokens": 30.0, "loss/kl_policy_ref": 4.0},
        {"loss/train": 2.0, "data/step_trainer_tokens": 10.0},
    ]
    assert loss_metrics(steps) == {"loss/train": 1.5, "loss/kl_policy_ref": 4.0, "data/trainer_tokens": 40.0}
    assert loss_metrics([]) == {}


def test_the_first_and_the_last_version_are_evaluated():
    assert versions_to_evaluate(4, 0, 10) == [0, 4, 8, 10]
    assert versions_to_evaluate(5, 3, 5) == [3, 8]
    assert versions_to_evaluate(100, 0, 3) == [0, 3]


def test_overlap_of_time_spans(monkeypatch):
    clock = iter([0.0, 10.0, 20.0, 25.0])
    monkeypatch.setattr("tandem.runs.reporting.stopwatch.time", SimpleNamespace(monotonic=lambda: next(clock)))
    stopwatch = Stopwatch()
    stopwatch.start()  # 0
    stopwatch.stop()  # 10
    stopwatch.stop()  # no effect: it doesn't run
    stopwatch.start()  # 20, and still runs at 25
    assert stopwatch.overlap(5, 23) == 5 + 3


# Output

TRAINED = {
    "kind": "training",
    "version": 1,
    "batch": 0,
    "job": "j",
    "time": 1.0,
    **rollout_metrics(GROUPS),
    "policy_lag/mean": 0.5,
    "policy_lag/max": 1,
    "loss/train": -0.1234,
    "gradient_steps": 2,
    "seconds/rollouts": 3.0,
    "seconds/training": 4.0,
    "seconds/waiting_for_rollouts": 0.5,
}
EVALUATED = {"kind": "evaluation", "version": 0, "time": 0.5, "eval/reward/mean": 0.25, "eval/reward/std": 0.4}
EVALUATED |= {"eval/rollouts/num": 8, "eval/rollouts/failed": 0, "seconds/evaluation": 1.25}


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "metrics.jsonl")
    ledger.append(EVALUATED)
    ledger.append(TRAINED)
    return ledger


def test_a_line_of_a_log():
    assert line(TRAINED, 10) == (
        "version 1 (job 1/10) · reward 1.000 ± 0.816 · lag 0.5 (max 1) · loss -0.1234 · "
        "3 rollouts, 3 failed: TimeoutError 1, ValueError 2 · 11 tokens · "
        "rollouts 3.0 s, training 4.0 s, learner waited 0.5 s"
    )
    partly = {**TRAINED, "trained/trajectories": 1, "not_trained/equal_rewards": 2, "not_trained/empty": 1}
    assert "ValueError 2, 3 not trained: equal_rewards 2, empty 1 · 11 tokens" in line(partly, 10)
    assert line(EVALUATED, 10) == "evaluation of version 0: reward 0.250 ± 0.400 (8 rollouts, 1.2 s)"


def test_a_terminal_shows_a_table_and_reports(ledger, tmp_path):
    console = PlainConsole(force_terminal=True, width=140, record=True)
    with TerminalReport(console, ledger, ScalarWriter(tmp_path / "tensorboard", [])) as report:
        report.progress.num_jobs = 10
        report.say("The service is back.")
    shown = console.export_text()
    assert "The service is back." in shown
    assert any("1.000" in row and "█" in row for row in shown.splitlines())


def test_a_status_line():
    progress = Progress(num_jobs=10, version=3, rolling_batch=4, num_groups=32, num_groups_done=12, training_batch=3)
    assert now(progress) == "version 3 · rolling out batch 5: 12/32 groups · training job 4/10: 0/? steps"
    assert now(replace(progress, training_batch=None, num_groups_done=32, evaluating=0)) == (
        "version 3 · evaluating version 0"
    )


def test_tensorboard_has_each_row_once_however_often_a_run_is_resumed(ledger, tmp_path):
    directory = tmp_path / "tensorboard"
    first = ScalarWriter(directory, [])
    for row in ledger.rows:
        first.write(row)
    first.write(TRAINED | {"version": 2, "reward/mean": 99.0})  # not in the ledger
    first.close()
    ScalarWriter(directory, ledger.rows).close()
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    assert [(event.step, event.value) for event in accumulator.Scalars("reward/mean")] == [(1, 1.0)]
    assert [event.step for event in accumulator.Scalars("eval/reward/mean")] == [0]


def test_the_plot_is_drawn(ledger, tmp_path):
    plot_rewards(ledger, "a run", tmp_path / "reward.png")
    assert (tmp_path / "reward.png").read_bytes()[:4] == b"\x89PNG"
