"""Evaluations and failed rollouts come to the service, and can't hurt the run."""


def test_evaluations_are_logged_with_version_task_and_seed(service, task_file, do_run):
    report = do_run(task_file(training={"jobs": 1}, evaluation={"every": 1, "tasks": 2, "samples_per_task": 3}))
    assert [log["split"] for log in service.logs] == ["eval", "eval"]
    for version, log in enumerate(service.logs):
        assert [len(group["trajectories"]) for group in log["trajectory_groups"]] == [3, 3]
        for task, group in enumerate(log["trajectory_groups"]):
            for trajectory in group["trajectories"]:
                expected = {"split": "eval", "version": version, "task": task, "seed": 5}
                assert trajectory["metadata"] == expected and trajectory["reward"] == version
    assert report.said == []


def test_trajectories_of_jobs_say_their_task_and_are_sent_once(service, task_file, do_run):
    do_run(task_file(training={"jobs": 2}))
    assert service.logs == []
    for batch, job in enumerate(service.jobs):
        for question, group in zip(job.questions, job.body["trajectory_groups"], strict=True):
            task = int(question.split()[1])  # the task's number is its place in the split
            for trajectory in group["trajectories"]:
                assert trajectory["metadata"] == {"split": "train", "batch": batch, "seed": 5, "task": task}


def test_a_service_that_refuses_logs_is_reported_once(service, task_file, do_run):
    service.log_status = 500
    report = do_run(task_file(training={"jobs": 2}, evaluation={"every": 1, "tasks": 1}))
    assert len(report.said) == 1 and "500" in report.said[0]
    assert [row["version"] for row in report.rows if row["kind"] == "evaluation"] == [0, 1, 2]


def test_nothing_is_sent_when_it_is_switched_off(service, task_file, do_run):
    do_run(task_file(training={"jobs": 1}, evaluation={"every": 1, "tasks": 1}, output={"send_rollouts": False}))
    assert service.logs == []
