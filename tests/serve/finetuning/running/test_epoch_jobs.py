"""Supervised and DPO jobs with the unmodified SDK of OpenAI, a real store, and fake learners."""

import json

import pytest
import zstandard
from fine_tuning_data import CHAT, PAIR

from tandem.cluster.jobs.job import PolicyVersion


@pytest.fixture
def rows_of(services):
    """A function that returns the rows of a training job's payload."""

    def rows_of(job):
        raw = services.artifacts.read_blob(job.payload_key)
        lines = zstandard.ZstdDecompressor().decompressobj().decompress(raw).splitlines()
        return [json.loads(line) for line in lines]

    return rows_of


def chats(num):
    return [{"messages": [{"role": "user", "content": str(n)}, *CHAT["messages"][1:]]} for n in range(num)]


def contents(rows):
    return [row["messages"][0]["content"] for row in rows]


def test_each_epoch_is_a_training_job_and_a_checkpoint(client, upload, learning, start_runner, finished, rows_of):
    start_runner()
    rows = [{**row, "parallel_tool_calls": False} for row in chats(5)]
    settings = {"hyperparameters": {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 3}}
    job = finished(
        client.fine_tuning.jobs.create(
            model="tandem/tiny",
            training_file=upload(rows).id,
            method={"type": "supervised", "supervised": settings},
            seed=1,
        )
    )
    assert (job.status, job.error) == ("succeeded", None)
    first, second = learning["claimed"]
    assert (first.kind, first.config.batch_size, first.config.learning_rate) == ("sft", 2, pytest.approx(1.5e-4))
    orders = [contents(rows_of(training)) for training in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == list("01234") and orders[0] != orders[1]
    assert all(set(row) == {"messages"} for row in rows_of(first))
    checkpoints = client.fine_tuning.jobs.checkpoints.list(job.id).data
    assert [c.fine_tuned_model_checkpoint for c in checkpoints] == [
        job.fine_tuned_model,
        job.fine_tuned_model.replace("step2", "step1"),
    ]
    messages = [e.message for e in client.fine_tuning.jobs.list_events(job.id) if e.type == "metrics"]
    assert messages == ["Step 2/6: training loss=0.5", "Step 1/6: training loss=0.5"]


def test_hyperparameters_that_are_auto_get_numbers(client, upload, learning, start_runner, finished):
    start_runner()
    job = finished(client.fine_tuning.jobs.create(model="tandem/tiny", training_file=upload(chats(200)).id))
    assert job.hyperparameters.model_dump() == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert job.method.supervised.hyperparameters.batch_size == 4


def test_dpo_holds_all_epochs_to_the_version_at_the_start(
    client, upload, learning, start_runner, finished, rows_of, add_model, add_job, claim, store
):
    model = add_model("agent")
    learning["go"].clear()  # it takes the next job, but not this one's end
    add_job(model)
    learning["go"].set()
    start = store.versions.resolve("team", "project", "agent", None)
    while start.step == 0:
        start = store.versions.resolve("team", "project", "agent", None)
    learning["claimed"].clear()
    start_runner()
    settings = {"hyperparameters": {"n_epochs": 2, "beta": 0.3, "batch_size": 1}}
    job = finished(
        client.fine_tuning.jobs.create(
            model="team/project/agent",
            training_file=upload([{**PAIR, "input": {**PAIR["input"], "parallel_tool_calls": True}}]).id,
            method={"type": "dpo", "dpo": settings},
        )
    )
    assert (job.status, job.error) == ("succeeded", None)
    assert [training.kind for training in learning["claimed"]] == ["dpo", "dpo"]
    assert learning["claimed"][0].config.beta == 0.3
    assert {training.reference_digest for training in learning["claimed"]} == {start.digest}
    first, second = learning["claimed"]
    assert first.version == PolicyVersion(first.model_id, 1, start.digest) and second.version.step == 2
    assert rows_of(first) == [PAIR]
    assert job.fine_tuned_model.endswith(":step3") and "/fine-tuning/agent-" not in job.fine_tuned_model


@pytest.mark.parametrize(
    ("method", "row", "said"),
    [
        ("supervised", {"messages": [{"role": "user", "content": "x"}]}, "role 'assistant'"),
        ("supervised", {"messages": [{**CHAT["messages"][1], "weight": 0}]}, "weight"),
        ("supervised", {**CHAT, "other": 1}, "other: isn't known here"),
        ("supervised", {"messages": [{"role": "assistant", "content": "x", "weight": 2}]}, "messages.0.weight"),
        ("supervised", PAIR, "messages: is missing"),
        ("dpo", {**PAIR, "non_preferred_output": PAIR["preferred_output"]}, "are the same"),
        ("dpo", {**PAIR, "preferred_output": []}, "preferred_output"),
        ("dpo", {**PAIR, "preferred_output": [{"role": "user", "content": "x"}]}, "preferred_output"),
        ("dpo", {"preferred_output": PAIR["preferred_output"]}, "input: is missing"),
        ("dpo", CHAT, "input: is missing"),
    ],
)
def test_a_row_that_cannot_be_used_fails_the_job(client, upload, start_runner, finished, method, row, said):
    start_runner()
    good = CHAT if method == "supervised" else PAIR
    job = finished(
        client.fine_tuning.jobs.create(
            model="tandem/tiny", training_file=upload([good, row]).id, method={"type": method}
        )
    )
    assert (job.status, job.error.code, job.error.param) == ("failed", "invalid_training_file", "training_file")
    assert "line 2" in job.error.message and said in job.error.message, job.error.message
