"""Reinforcement jobs with the unmodified SDK of OpenAI, a real store, and fakes of engine and learners."""

from urllib.parse import unquote

import pytest
from fine_tuning_data import EXACT, TASK
from waiting import wait_until

HALF = {
    "type": "multi",
    "name": "both",
    "graders": {"exact": EXACT, "long": {**EXACT, "name": "long", "operation": "like"}},
    "calculate_output": "(exact + long) / 2",
}


@pytest.fixture
def create(client, upload):
    def create(rows=(TASK, TASK), grader=EXACT, validation=None, response_format=None, **hyperparameters):
        settings = {
            "grader": grader,
            "hyperparameters": {"batch_size": 1, "compute_multiplier": 0.25, **hyperparameters},
        }
        if response_format:
            settings["response_format"] = response_format
        return client.fine_tuning.jobs.create(
            model="tandem/tiny",
            training_file=upload(rows).id,
            method={"type": "reinforcement", "reinforcement": settings},
            suffix="my agent",
            seed=5,
            **({"validation_file": upload(validation).id} if validation else {}),
        )

    return create


def messages(client, job):
    return [event.message for event in client.fine_tuning.jobs.list_events(job.id, limit=100)][::-1]


def test_each_batch_is_rolled_out_graded_and_trained(
    client, create, learning, start_runner, finished, says, engine, payload, store
):
    says("seven!")
    start_runner()
    job = finished(create(grader=HALF, rows=[TASK, {**TASK, "answer": "eight"}]))
    assert (job.status, job.error) == ("succeeded", None), job.error
    name = f"team/fine-tuning/my-agent-{job.id.removeprefix('ftjob-')[:8]}"
    assert (job.fine_tuned_model, job.trained_tokens) == (f"{name}:step2", 20)
    numbers = job.method.reinforcement.hyperparameters
    assert (numbers.n_epochs, numbers.batch_size, numbers.learning_rate_multiplier) == (1, 1, 1)

    groups = [payload(training)["trajectory_groups"] for training in learning["claimed"]]
    assert [len(of_job) for of_job in groups] == [1, 1], "a batch of one row is one group"
    rewards = sorted(trajectory["reward"] for of_job in groups for t in of_job for trajectory in t["trajectories"])
    assert rewards == [0, 0, 0.5, 0.5], "a group has two answers at a quarter of the compute"
    [first] = groups[0]
    assert first["trajectories"][0]["messages_and_choices"][0] == TASK["messages"][0]
    assert first["trajectories"][0]["messages_and_choices"][1]["policy_version"] == 0

    asked = [(unquote(dict(headers)["x-requested-model"]), body["seed"]) for _, _, _, headers, body, _ in engine.asked]
    assert [model for model, _ in asked] == [f"{name}:step0"] * 2 + [f"{name}:step1"] * 2
    assert len(set(asked)) == 4, "each answer has a seed of its own"
    assert {body["temperature"] for _, _, _, _, body, _ in engine.asked} == {1.0}

    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)
    assert [c.fine_tuned_model_checkpoint for c in checkpoints] == [f"{name}:step2", f"{name}:step1"]
    newest = checkpoints.data[0]
    assert (newest.step_number, newest.fine_tuning_job_id, newest.metrics.train_loss) == (2, job.id, 0.5)
    shown = messages(client, job)
    assert shown[:3] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
        "Files validated, moving job to queued state",
    ]
    assert shown[-2:] == [f"New fine-tuned model created: {name}:step2", "The job has successfully completed"]
    assert "Fine-tuning job started" in shown
    [metrics] = [e for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics" and e.data["step"] == 2]
    assert metrics.message == "Step 2: training loss=0.5" and metrics.data["train_loss"] == 0.5


def test_a_format_for_the_answers_reaches_the_engine(create, learning, start_runner, finished, says, engine):
    says('{"n": 7}')
    start_runner()
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    grader = {**EXACT, "input": "{{sample.output_json.n}}", "reference": "7"}
    assert finished(create(rows=[TASK], grader=grader, response_format=schema)).status == "succeeded"
    assert all(body["response_format"] == schema for _, _, _, _, body, _ in engine.asked)


def test_epochs_are_permutations_that_follow_from_the_seed(create, learning, start_runner, finished, says, payload):
    says("seven")
    start_runner()
    rows = [{**TASK, "messages": [{"role": "user", "content": str(n)}]} for n in range(6)]

    def order():
        learning["claimed"].clear()
        assert finished(create(rows=rows, batch_size=4, n_epochs=2)).status == "succeeded"
        return [
            [
                group["trajectories"][0]["messages_and_choices"][0]["content"]
                for group in payload(j)["trajectory_groups"]
            ]
            for j in learning["claimed"]
        ]

    first = order()
    assert [len(batch) for batch in first] == [4, 2, 4, 2]
    assert sorted(first[0] + first[1]) == sorted(first[2] + first[3]) == list("012345")
    assert first[:2] != first[2:] and order() == first


def test_a_validation_file_is_evaluated(client, create, learning, start_runner, finished, says):
    says("seven")
    start_runner()
    rows = [TASK] * 3
    job = finished(create(rows=rows, validation=[TASK, {**TASK, "answer": "six"}], eval_interval=2, eval_samples=3))
    found = [e.data for e in client.fine_tuning.jobs.list_events(job.id, limit=100) if "Evaluation" in e.message]
    assert [(d["step"], d["valid_mean_reward"], d["num_answers"]) for d in found] == [
        (3, 0.5, 6),
        (2, 0.5, 6),
        (0, 0.5, 6),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "line 2: messages"),
        ({"prompt": "x"}, "line 2: messages: is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "line 2: messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 2"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "line 2: messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "line 2: messages.0.content"),
    ],
)
def test_a_row_that_cannot_be_used_fails_the_job_by_line_and_field(create, start_runner, finished, row, said):
    start_runner()
    job = finished(create(rows=[TASK, row]))
    assert job.status == "failed"
    assert (job.error.code, job.error.param) == ("invalid_training_file", "training_file")
    assert said in job.error.message


def test_answers_that_cannot_be_graded_fail_the_job(create, learning, start_runner, finished, says):
    says("seven")
    start_runner()
    job = finished(create(grader={**EXACT, "reference": "{{item.none}}"}))
    assert (job.status, job.error.code) == ("failed", "grading_failed")
    assert "item.none" in job.error.message and learning["claimed"] == []


def test_a_training_job_that_fails_fails_the_job(create, learning, start_runner, finished, says):
    says("seven")
    learning["fail"] = "The loss isn't finite."
    start_runner()
    job = finished(create())
    assert (job.status, job.error.message, job.error.code) == ("failed", "The loss isn't finite.", "training_failed")


def test_a_runner_that_takes_over_trains_nothing_twice(client, create, learning, start_runner, finished, says, store):
    says("seven")
    learning["go"].clear()
    stop = start_runner()
    job = create()
    wait_until(lambda: learning["claimed"])
    stop()
    assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
    start_runner()
    learning["go"].set()
    job = finished(job)
    assert job.status == "succeeded" and job.fine_tuned_model.endswith(":step2")
    assert len(store.jobs.page("team", 100)) == len(learning["claimed"]) == 2
    shown = messages(client, job)
    assert len(shown) == len(set(shown)), "no event is shown twice"


def test_a_cancelled_job_ends_its_training(client, create, learning, start_runner, finished, says, store):
    says("seven")
    learning["go"].clear()
    start_runner()
    job = create()
    wait_until(lambda: learning["claimed"])
    client.fine_tuning.jobs.cancel(job.id)
    assert finished(job).status == "cancelled"
    assert [row.state for row in store.jobs.page("team", 100)] == ["cancelled"]


def test_a_job_is_cancelled_while_it_waits_for_answers(client, create, start_runner, finished, engine):
    engine.chunks = [600.0]
    start_runner()
    job = create()
    wait_until(lambda: engine.asked)
    client.fine_tuning.jobs.cancel(job.id)
    assert finished(job).status == "cancelled"


def test_a_judge_rewards_the_answers(create, learning, start_runner, finished, says, payload):
    says('{"result": 0.75}')
    start_runner()
    judge = {
        "type": "score_model",
        "name": "judge",
        "model": "tandem/tiny",
        "input": [{"role": "user", "content": "Grade {{sample.output_text}}."}],
    }
    assert finished(create(rows=[TASK], grader=judge)).status == "succeeded"
    [training] = learning["claimed"]
    assert {t["reward"] for t in payload(training)["trajectory_groups"][0]["trajectories"]} == {0.75}
