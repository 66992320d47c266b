"""Evaluation beside training, each time on one version."""

from itertools import groupby


def test_each_due_version_is_evaluated_on_the_eval_split_and_pinned(service, task_file, do_run):
    service.training_s, service.completion_s = 0.05, 0.05
    evaluation = {"every": 2, "tasks": 2, "samples_per_task": 3}
    report = do_run(task_file(training={"jobs": 5, "max_policy_lag": 1}, evaluation=evaluation))
    rows = [row for row in report.rows if row["kind"] == "evaluation"]
    assert [row["version"] for row in rows] == [0, 2, 4, 5]
    # The environment's reward is the version that answered.
    assert [(row["eval/reward/mean"], row["eval/reward/std"]) for row in rows] == [(v, 0) for v in (0, 2, 4, 5)]
    assert [row["eval/rollouts/num"] for row in rows] == [6] * 4
    pinned = [name for name, _ in service.completions if ":step" in name]
    assert [(name, len(list(group))) for name, group in groupby(pinned)] == [
        (f"default/runs/test:step{version}", 6) for version in (0, 2, 4, 5)
    ]


def test_training_doesnt_wait_for_evaluation(service, task_file, do_run):
    service.holds_completion = lambda model, version: model.endswith(":step0") and service.step < 4
    report = do_run(task_file(training={"jobs": 4, "max_policy_lag": 0}, evaluation={"every": 1}))
    order = [(row["kind"], row["version"]) for row in report.rows]
    # The evaluation of version 0 waits for version 4, which is trained from version 3.
    assert order.index(("training", 3)) < order.index(("evaluation", 0))
    assert order[-1] == ("evaluation", 4)


def test_evaluation_has_its_own_sampling(service, task_file, do_run):
    do_run(
        task_file(
            training={"jobs": 1},
            rollouts={"temperature": 0.7, "max_tokens": 9, "sampling": {"top_p": 0.5}},
            evaluation={"every": 1, "sampling": {"stop": ["x"]}},
        )
    )
    of_training = [body for body in service.completion_bodies if ":step" not in body["model"]]
    of_evaluation = [body for body in service.completion_bodies if ":step" in body["model"]]
    assert len(of_training) == 2 and len(of_evaluation) == 6  # a group's rollouts share a request
    for body in of_training:
        assert (body["temperature"], body["max_tokens"], body["top_p"]) == (0.7, 9, 0.5) and "stop" not in body
    for body in of_evaluation:
        assert (body["temperature"], body["max_tokens"], body["stop"]) == (0, 9, ["x"]) and "top_p" not in body
