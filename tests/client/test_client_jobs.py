"""Training jobs: post, follow, wait, cancel, and their results."""

import json

import pytest
import zstandard
from openai.types.chat.chat_completion import Choice
from serve_fakes import choice, groups

from tandem.client import ConflictError, InvalidRequestError, JobCancelledError, JobFailedError, WaitTimeoutError
from tandem.cluster.artifacts import PAYLOADS, job_artifact_key


def test_a_job_is_posted_followed_and_makes_a_version(client, agent, end_next_job):
    job = client.train(agent, groups(), learning_rate=1e-3)
    assert client.get_job(job).state == "queued"
    end_next_job()
    assert [event.type for event in client.events(job)] == ["training_started", "gradient_step", "training_ended"]
    assert client.wait(job).step == 1
    assert client.get_model(agent).step == 1
    [version] = client.versions(agent)
    assert (version.step, version.digest) == (1, "digest-1")
    assert client.versions(agent, after=1) == []
    [checkpoint] = client.checkpoints(agent)
    assert (checkpoint.step, checkpoint.metrics) == (1, {"reward": 0.5})


def test_a_job_tells_what_does_not_train(client, agent, end_next_job):
    job = client.train(agent, groups())
    end_next_job(warning="Nothing was trained.")
    ended = client.wait(job)
    assert (ended.trained, ended.not_trained, ended.warnings) == (None, {"empty": 2}, ["Nothing was trained."])


def test_events_continue_after_an_event(client, agent, end_next_job):
    job = client.train(agent, groups())
    end_next_job()
    first, *rest = client.events(job)
    assert list(client.events(job, after=first.id)) == rest


def test_choices_of_the_openai_client_are_posted_as_they_came(client, agent, services):
    messages = [{"role": "user", "content": "1 + 6 = ?"}, Choice.model_validate(choice())]
    trajectories = [{"messages_and_choices": messages, "reward": reward} for reward in (0.0, 1.0)]
    job = client.train(agent, [{"trajectories": trajectories}], learning_rate=1e-3)
    blob = services.artifacts.read_blob(f"{PAYLOADS}/{job}.json.zst")
    posted = json.loads(zstandard.ZstdDecompressor().stream_reader(blob).read())
    assert posted["trajectory_groups"][0]["trajectories"][1]["messages_and_choices"][1] == choice()
    assert posted["experimental_config"] == {"learning_rate": 1e-3}


def test_a_failed_job_raises_the_sentence(client, agent, end_next_job):
    job = client.train(agent, groups())
    end_next_job("Stage train: the learner ran out of memory.")
    with pytest.raises(JobFailedError, match=r"Stage train: the learner ran out of memory\.") as raised:
        client.wait(job)
    assert raised.value.job.state == "failed" and not isinstance(raised.value, JobCancelledError)
    assert [*client.events(job)][-1].data["error_message"] == raised.value.job.error


def test_a_cancelled_job_raises(client, agent):
    job = client.train(agent, groups())
    assert client.cancel_job(job).state == "cancelled"
    with pytest.raises(JobCancelledError) as raised:
        client.wait(job)
    assert raised.value.job.id == job
    assert client.cancel_job(job).state == "cancelled"


def test_waiting_ends_at_its_deadline(client, agent):
    job = client.train(agent, groups())
    with pytest.raises(WaitTimeoutError, match=job):
        client.wait(job, timeout_s=0.2)
    with pytest.raises(WaitTimeoutError, match="version 1"):
        client.wait_for_version(agent, 1, timeout_s=0.2)


def test_versions_are_waited_for(client, agent, end_next_job):
    for _ in range(2):
        client.train(agent, groups())
        end_next_job()
    assert [client.wait_for_version(agent, step).step for step in (0, 1, 2)] == [1, 1, 2]


def test_jobs_are_listed_over_all_pages(client, agent, store, add_job):
    other = client.register_model("agent", project="other", base_model="tandem/tiny")
    ids = [add_job(store.models.get(model.id, "team")).id for model in (agent, other) for _ in range(60)]
    assert [job.id for job in client.jobs()] == ids[::-1]
    assert [job.id for job in client.jobs(model=other, state="queued", newest_first=False)] == ids[60:]
    assert list(client.jobs(state="running")) == []


def test_artifacts_are_downloaded(client, agent, services):
    job = client.train(agent, groups())
    services.artifacts.write_blob(job_artifact_key(job, "sequence_000.png"), b"\x89PNG")
    [artifact] = client.artifacts(job)
    assert (artifact.id, artifact.size_bytes) == ("sequence_000.png", 4)
    assert client.download_artifact(job, artifact) == b"\x89PNG"


def test_a_fault_of_a_trajectory_has_its_place(client, agent):
    wrong = [{"trajectories": [{"messages_and_choices": [], "reward": "much"}]}]
    with pytest.raises(InvalidRequestError) as raised:
        client.train(agent, wrong)
    error = raised.value
    assert (error.status, error.code) == (422, "invalid_request")
    assert error.param.startswith("body.trajectory_groups.0.trajectories.0.")
    assert ("body", "trajectory_groups", 0, "trajectories", 0, "reward") in [fault.loc for fault in error.faults]


def test_a_key_with_another_body_is_a_conflict(client, agent):
    job = client.train(agent, groups(), idempotency_key="mine")
    assert client.train(agent, groups(), idempotency_key="mine") == job
    with pytest.raises(ConflictError) as raised:
        client.train(agent, groups(2), idempotency_key="mine")
    assert raised.value.status == 409
