"""OpenAI's fine-tuning API with its unmodified SDK on the whole service: each method to a model that answers."""

import json

import pytest
from waiting import wait_until

BASE = "tandem/tiny"
NUMBERS = [(a, b, 20 - a) for a in range(1, 5) for b in range(6, 10)]


def question(numbers):
    a, b, c = numbers
    return [{"role": "user", "content": f"Which is the largest: {a}, {b} or {c}?"}]


@pytest.fixture
def tune(service):
    """A function that runs a job to its end on rows, and returns the client and the job."""

    def tune(rows, method, settings, **options):
        client = service.openai()
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = client.files.create(file=("rows.jsonl", content), purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model=options.pop("model", BASE),
            training_file=file.id,
            method={"type": method, method: settings},
            suffix=f"tests {method}",
            seed=3,
            **options,
        )
        wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).finished_at, deadline_s=240)
        client.files.delete(file.id)
        return client, client.fine_tuning.jobs.retrieve(job.id)

    return tune


def metrics(client, job):
    """The data of the job's events of gradient steps, in order."""
    events = client.fine_tuning.jobs.list_events(job.id, limit=100)
    return [e.data for e in events if e.type == "metrics" and "train_loss" in (e.data or {})][::-1]


def answers(client, model):
    completion = client.chat.completions.create(
        model=model, messages=question(NUMBERS[0]), max_tokens=24, temperature=0
    )
    return completion.choices[0].message.content


def test_reinforcement_rolls_out_grades_and_trains(tune):
    rows = [{"messages": question(numbers), "answer": str(max(numbers))} for numbers in NUMBERS]
    grader = {
        "type": "string_check",
        "name": "right",
        "input": "{{sample.output_text}}",
        "reference": "is {{item.answer}}.",
        "operation": "like",
    }
    numbers = {"batch_size": 8, "compute_multiplier": 0.5, "n_epochs": 1, "learning_rate_multiplier": 100}
    client, job = tune(rows, "reinforcement", {"grader": grader, "hyperparameters": numbers})
    assert (job.status, job.error) == ("succeeded", None)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [c.fine_tuned_model_checkpoint.rpartition(":")[2] for c in checkpoints] == ["step2", "step1"]
    assert job.fine_tuned_model == checkpoints[0].fine_tuned_model_checkpoint and job.trained_tokens > 0
    assert all(0 < checkpoint.metrics.model_extra["train_mean_reward"] < 1 for checkpoint in checkpoints)
    assert answers(client, job.fine_tuned_model) is not None


def test_supervised_teaches_an_answer_and_goes_on_from_it(tune):
    def rows(answer):
        return [
            {
                "messages": [
                    *question(numbers),
                    {"role": "assistant", "content": "None of them.", "weight": 0},
                    {"role": "user", "content": "Really?"},
                    {"role": "assistant", "content": answer},
                ],
                "parallel_tool_calls": False,
            }
            for numbers in NUMBERS
        ]

    def says(client, model):
        messages = rows("")[0]["messages"][:3]
        messages[1] = {"role": "assistant", "content": "None of them."}
        completion = client.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
        return completion.choices[0].message.content

    numbers = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 60}
    client, job = tune(rows("The moon is red."), "supervised", {"hyperparameters": numbers})
    assert (job.status, job.error) == ("succeeded", None)
    losses = [data["train_loss"] for data in metrics(client, job)]
    assert len(losses) == 12 and losses[-1] < losses[0] / 4
    said = says(client, job.fine_tuned_model)
    assert said.startswith("The moon is")
    assert len(client.fine_tuning.jobs.checkpoints.list(job.id).data) == 3

    again = {**numbers, "n_epochs": 1}
    _, second = tune(rows("The sun is red."), "supervised", {"hyperparameters": again}, model=job.fine_tuned_model)
    assert second.status == "succeeded" and second.fine_tuned_model != job.fine_tuned_model
    assert metrics(client, second)[0]["train_loss"] < losses[0] / 2, "it starts from the first job's version"
    assert says(client, job.fine_tuned_model) == said, "which stays as it is"


def test_dpo_raises_the_margin(tune):
    rows = [
        {
            "input": {"messages": question(numbers)},
            "preferred_output": [{"role": "assistant", "content": f"The largest is {max(numbers)}."}],
            "non_preferred_output": [{"role": "assistant", "content": f"The largest is {min(numbers)}."}],
        }
        for numbers in NUMBERS
    ]
    numbers = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 200, "beta": 0.2}
    client, job = tune(rows, "dpo", {"hyperparameters": numbers})
    assert (job.status, job.error) == ("succeeded", None)
    found = metrics(client, job)
    assert len(found) == 4 and found[0]["train_reward_margin"] == pytest.approx(0, abs=1e-3)
    assert found[-1]["train_reward_margin"] > found[1]["train_reward_margin"] > 0.01
    assert found[-1]["train_loss"] < found[0]["train_loss"] == pytest.approx(0.6931, abs=1e-3)
    assert answers(client, job.fine_tuned_model).startswith("The largest is")
