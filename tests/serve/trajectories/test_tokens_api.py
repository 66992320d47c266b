"""The tokens of a trajectory, as the API shows them, against numbers that are computed in another way."""

import math
import uuid
from datetime import UTC, datetime

import pytest
import torch
from serve_fakes import choice, trajectory
from traced_jobs import tiny_learner, train

from tandem.cluster.artifacts import traces_key
from tandem.rl.packing import one_segment
from tandem.rl.traces.trace_file import write_traces
from tandem.serve.jobs.sweeping import sweep

JOBS = "/v1/preview/training-jobs"
SNOWMAN = [226, 152, 131]


def ask(http, id, status=200, **params):
    response = http.get(f"/v1/preview/trajectories/{id}/tokens", params=params)
    assert response.status_code == status, response.text
    return response.json() if status == 200 else response.json()["error"]


def sent(reward, *ids, **changes):
    turn = choice(ids, logprob=-1.5, policy_version=4)
    return trajectory(reward, messages_and_choices=[{"role": "user", "content": "1 + 6 = ?"}, turn], **changes)


GROUPS = [
    {"trajectories": [sent(1.0, 300, 301, 424), sent(0.0, 300, 302, 303, 304), sent(0.5, 310)]},
    {"trajectories": [sent(1.0, 305), sent(1.0, 306)]},
    {"trajectories": [sent(2.0, 307), sent(0.0, 308), {"messages_and_choices": [], "reward": 1.0}]},
    {"trajectories": [sent(2.0, *range(10, 260)), sent(0.0, 308)]},
]


@pytest.fixture
def post(http, model):
    def post(groups=GROUPS, **config):
        body = {"model_id": model["id"], "trajectory_groups": groups, "experimental_config": config}
        return http.post(JOBS, json=body).json()["id"]

    return post


def test_the_numbers_of_the_first_step_are_those_of_a_plain_forward_pass(http, post, services, claim, model):
    job = post(packed_sequence_length=128)
    train(services, claim())
    found = ask(http, f"{job}.0.0")
    assert (found["state"], found["kind"], found["job_id"], found["log_id"]) == ("trained", "rl", job, None)
    assert (found["reason"], found["made_version"], found["model_id"]) == (None, 1, model["id"])
    tokens = found["tokens"]
    trained = [i for i, is_trained in enumerate(tokens["mask"]) if is_trained]
    assert [tokens["ids"][i] for i in trained] == [300, 301, 424]
    assert trained == list(range(found["num_tokens"] - 3, found["num_tokens"]))
    assert [tokens["sampling_logprobs"][i] for i in trained] == [-1.5] * 3
    with torch.no_grad():
        logprobs, _ = tiny_learner().policy.logprobs(one_segment(torch.tensor(tokens["ids"])))
    expected = [float(logprobs[i - 1]) for i in trained]
    assert found["sequences"][0]["gradient_step"] == 0
    assert [tokens["learner_logprobs"][i] for i in trained] == pytest.approx(expected, abs=1e-5)
    assert [tokens["ratios"][i] for i in trained] == pytest.approx([math.exp(e + 1.5) for e in expected], rel=1e-4)
    assert tokens["learner_logprobs"][: trained[0]] == [None] * trained[0]
    differences = found["differences"]
    assert (differences["num"], differences["mean"]) == (3, pytest.approx(sum(expected) / 3 + 1.5, abs=1e-5))
    largest = max(trained, key=lambda i: abs(tokens["learner_logprobs"][i] + 1.5))
    assert found["notable"]["mismatch"][0]["token"] == largest
    assert found["notable"]["improbable"][0]["token"] == min(trained, key=lambda i: tokens["learner_logprobs"][i])
    [turn] = found["sequences"][0]["turns"]
    assert turn == {"begin": trained[0], "num_tokens": 3, "index": 1, "policy_version": 4}


def test_advantages_are_those_worked_out_by_hand(http, post, services, claim):
    """Rewards 3 and 1: 1 and -1 after scaling. With 2 and 4 tokens, the weights 1/2 and 1/4 become 1.5 and 0.75."""
    job = post([{"trajectories": [sent(3.0, 300, 301), sent(1.0, 300, 302, 303, 304)]}])
    train(services, claim())
    found = [ask(http, f"{job}.0.{index}")["sequences"][0] for index in (0, 1)]
    assert [one["weight"] for one in found] == pytest.approx([1.5, 0.75], abs=1e-5)
    assert [one["advantage"] for one in found] == pytest.approx([1.0, -1.0], abs=1e-5)
    assert [one["num_trained"] for one in found] == [2, 4]


def test_a_trajectory_that_trained_nothing_has_its_tokens_and_the_reason(http, post, services, claim):
    job = post(packed_sequence_length=128)
    train(services, claim())
    equal = ask(http, f"{job}.1.0")
    assert (equal["state"], equal["reason"]) == ("not_trained", "equal_rewards")
    assert "the same reward as all others of the group" in equal["message"]
    assert (equal["tokens"]["ids"][-1], equal["tokens"]["sampling_logprobs"][-1]) == (305, -1.5)
    assert equal["tokens"]["learner_logprobs"][-1] is None and not any(equal["tokens"]["mask"])
    assert equal["sequences"][0]["advantage"] is None and equal["notable"]["mismatch"] == []
    assert equal["notable"]["improbable"][0]["value"] == -1.5
    assert ask(http, f"{job}.0.2")["reason"] == "mean_reward"
    assert ask(http, f"{job}.2.2")["reason"] == "empty"
    assert ask(http, f"{job}.3.0")["reason"] == "too_long"
    assert ask(http, f"{job}.9.0", 404)["code"] == "trajectory_not_found"
    assert ask(http, f"{job}.0.9", 404)["code"] == "trajectory_not_found"


def test_parts_of_characters_are_bytes_and_ranges_are_parts_of_the_whole(http, post, services, claim):
    tokenizer = services.preparation._base_models["tandem/tiny"].tokenizer
    ids = tokenizer.encode("a ☃")
    job = post([{"trajectories": [sent(1.0, *ids), sent(0.0, 300)]}])
    train(services, claim())
    whole = ask(http, f"{job}.0.0")
    first = whole["num_tokens"] - len(ids)
    pieces = [
        bytes.fromhex(raw) if raw is not None else text.encode()
        for text, raw in zip(whole["tokens"]["texts"], whole["tokens"]["bytes"], strict=True)
    ]
    assert b"".join(pieces[first:]).decode() == "a ☃"
    assert [raw for raw in whole["tokens"]["bytes"] if raw is not None] == [f"{byte:02x}" for byte in SNOWMAN]
    part = ask(http, f"{job}.0.0", start=first, limit=2)
    assert (part["tokens"]["start"], part["tokens"]["ids"], part["has_more"]) == (first, ids[:2], True)
    assert part["sequences"] == whole["sequences"] and part["notable"] == whole["notable"]
    for name, column in part["tokens"].items():
        if isinstance(column, list):
            assert column == whole["tokens"][name][first : first + 2]
    assert ask(http, f"{job}.0.0", start=first, limit=1000)["has_more"] is False
    assert ask(http, f"{job}.0.0", start=10**6)["tokens"]["ids"] == []
    for wrong in ({"limit": 0}, {"limit": 10_001}, {"start": -1}):
        ask(http, f"{job}.0.0", 422, **wrong)


def test_a_job_says_before_its_end_and_without_traces_why_there_is_nothing(http, post, services, claim, clock, store):
    job = post()
    assert ask(http, f"{job}.0.0", 409)["code"] == "not_trained_yet"
    sent_tokens = ask(http, f"{job}.0.0", as_sent=True)
    assert (sent_tokens["state"], sent_tokens["reason"]) == ("not_trained", "as_sent")
    assert sent_tokens["tokens"]["ids"][-3:] == [300, 301, 424]
    claimed = claim()
    assert ask(http, f"{job}.0.0", 409)["code"] == "not_trained_yet"
    train(services, claimed, with_traces=False)
    assert ask(http, f"{job}.0.0", 409)["code"] == "traces_not_written_yet"
    clock.advance(61)
    assert ask(http, f"{job}.0.0", 410)["code"] == "traces_not_kept"
    assert ask(http, f"{job}.1.0")["reason"] == "equal_rewards"  # known without traces
    services.artifacts.write_blob(traces_key(job, 1), write_traces([], "rl", {0: 7}))
    gone = ask(http, f"{job}.0.0", 410)
    assert (gone["code"], "max_trace_bytes" in gone["message"]) == ("traces_not_kept", True)
    services.artifacts.write_blob(traces_key(job, 1), b"damaged")
    assert ask(http, f"{job}.0.0", 410)["code"] == "traces_not_kept"
    other = post([{"trajectories": [sent(1.0, 300), sent(0.0, 301)]}])
    store.claims.fail(claim(), "The learners died.")
    failed = ask(http, f"{other}.0.0")
    assert (failed["state"], failed["reason"], failed["tokens"]["ids"][-1]) == ("not_trained", "job_failed", 300)


def test_only_the_attempt_that_made_the_version_counts(http, post, services, claim):
    job = post()
    claimed = claim()
    train(services, claimed)
    right = ask(http, f"{job}.0.0")
    services.artifacts.write_blob(traces_key(job, 7), b"of another attempt")
    assert ask(http, f"{job}.0.0") == right


def test_logged_trajectories_have_the_tokens_of_their_choices(http, model, services):
    logged = [{"trajectories": [sent(1.0, 300, 301), {"messages_and_choices": [{"role": "user", "content": "?"}]}]}]
    body = {"model_id": model["id"], "split": "val", "trajectory_groups": logged}
    log = http.post(f"/v1/preview/models/{model['id']}/log", json=body).json()["id"]
    found = ask(http, f"{log}.0.0")
    assert (found["state"], found["kind"], found["log_id"], found["reason"]) == ("logged", "log", log, None)
    assert (found["tokens"]["ids"], found["tokens"]["sampling_logprobs"]) == ([300, 301], [-1.5, -1.5])
    assert ask(http, f"{log}.0.1")["tokens"]["ids"] == []
    assert ask(http, f"{log}.1.0", 404)["code"] == "trajectory_not_found"


def test_ids_of_others_and_texts_that_are_no_ids_are_not_found(http, post, services, claim, store, app):
    from fastapi.testclient import TestClient

    from tandem.serve.keys import create_key

    job = post()
    train(services, claim())
    headers = {"Authorization": f"Bearer {create_key(store, 'others', 'others')}"}
    with TestClient(app, "http://tandem", headers=headers) as others:
        assert ask(others, f"{job}.0.0", 404)["code"] == "trajectory_not_found"
    for id in (f"{uuid.uuid4()}.0.0", job, f"{job}.0", f"{job}.00.0", f"{job}.0.-1", "..x.0.0"):
        assert ask(http, id, 404)["code"] == "trajectory_not_found"
    headers = {"Authorization": f"Bearer {create_key(store, 'infer', 'team', 'infer')}"}
    with TestClient(app, "http://tandem", headers=headers) as infer:
        assert ask(infer, f"{job}.0.0", 403)["code"] == "insufficient_role"


def test_sweeping_deletes_traces_that_belong_to_no_job(http, post, services, claim, store):
    job, unknown = post(), str(uuid.uuid4())
    train(services, claim())
    services.artifacts.write_blob(traces_key(unknown, 1), b"of a job whose model is gone")
    assert f"traces/{unknown}" in sweep(store, services.artifacts, datetime(2000, 1, 1, tzinfo=UTC))
    assert services.artifacts.traced_jobs() == [job]


def test_deleting_the_model_deletes_its_traces(http, post, services, claim, model):
    job = post()
    train(services, claim())
    assert services.artifacts.traced_jobs() == [job]
    http.delete(f"/v1/preview/models/{model['id']}")
    assert services.artifacts.traced_jobs() == []
    ask(http, f"{job}.0.0", 404)
