import json
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from serve_fakes import choice, groups, trajectory

from tandem.cluster.errors import StageError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.config import TrainingConfig
from tandem.serve.api.bodies import payload_body

JOBS = "/v1/preview/training-jobs"
# The options as the client's train() sends them: all of them, null if unset.
CLIENT_CONFIG = {
    "advantage_balance": 0.0,
    "epsilon": None,
    "epsilon_high": None,
    "importance_sampling_level": "token",
    "kimi_k2_tau": None,
    "learning_rate": 5e-6,
    "mask_prob_ratio": False,
    "max_negative_advantage_importance_sampling_weight": None,
    "ppo": False,
    "precalculate_logprobs": False,
    "scale_rewards": True,
}


@pytest.fixture
def post(http, model):
    def post(headers=None, **changes):
        body = {"model_id": model["id"], "trajectory_groups": groups(), **changes}
        return http.post(JOBS, json=body, headers=headers)

    return post


def test_an_accepted_job_is_durable_before_the_answer(post, store, services, claim, model):
    sent = [{**groups()[0], "exceptions": [], "metadata": {"task": "a"}, "metrics": {}, "logs": ["x"]}]
    response = post(trajectory_groups=sent, experimental_config=CLIENT_CONFIG)
    assert response.status_code == 200
    job_id = response.json()["id"]
    assert response.json() == {"id": str(uuid.UUID(job_id))}
    claimed = claim()
    assert (claimed.id, claimed.model_id) == (job_id, model["id"])
    assert claimed.config == TrainingConfig(**CLIENT_CONFIG)
    payload = zstandard.ZstdDecompressor().decompressobj().decompress(services.artifacts.read_blob(claimed.payload_key))
    assert json.loads(payload)["trajectory_groups"] == sent


def test_the_life_of_a_job_as_the_api_shows_it(http, post, store, clock, claim, model):
    job_id = post().json()["id"]
    url = f"{JOBS}/{job_id}"
    queued = http.get(url).json()
    assert (queued["state"], queued["attempt"], queued["step"], queued["started_at"]) == ("queued", 0, None, None)
    clock.advance(60)
    claimed = claim()
    store.claims.record_event(claimed, "training_started", {"num_sequences": 2})
    store.claims.record_event(claimed, "logprobs_rescored", {"num_tokens": 9})
    store.claims.record_event(claimed, "gradient_step", {"loss/train": 0.25})
    running = http.get(url).json()
    assert (running["state"], running["attempt"], running["num_events"]) == ("running", 1, 3)
    assert (running["created_at"], running["started_at"]) == ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z")
    store.claims.complete(claimed, PolicyVersion(model["id"], 1, "d"), {})
    ended = http.get(url).json()
    assert (ended["state"], ended["step"], ended["error"]) == ("succeeded", 1, None)
    events = http.get(f"{url}/events").json()["data"]
    assert [(event["type"], event["data"]) for event in events] == [
        ("training_started", {"num_sequences": 2}),
        ("logprobs_rescored", {"num_tokens": 9}),
        ("gradient_step", {"loss/train": 0.25}),
        ("training_ended", {}),
    ]


def test_a_job_says_what_of_it_trains_and_why_the_rest_does_not(http, post, store, claim):
    url = f"{JOBS}/{post().json()['id']}"
    queued = http.get(url).json()
    assert (queued["trained"], queued["not_trained"], queued["warnings"]) == (None, {}, [])
    claimed = claim()
    counts = {"num_trained_groups": 1, "num_trained_trajectories": 2, "num_sequences": 1, "num_trained_tokens": 9}
    left_out = {"kind": "partly_trained", "message": "2 of 6.", "counts": {"no_logprobs": 3, "equal_rewards": 1}}
    ignored = {"kind": "ignored_fields", "message": "run 4.", "counts": {"trajectory.run": 4}}
    for _ in range(2):  # the second time by another attempt
        store.claims.record_event(claimed, "training_started", counts)
        store.claims.record_event(claimed, "warning", left_out)
        store.claims.record_event(claimed, "warning", ignored)
    events = http.get(f"{url}/events").json()["data"]
    assert [event["type"] for event in events] == ["training_started", "warning", "warning"]
    assert [event["data"] for event in events[1:]] == [left_out, ignored]
    job = http.get(url).json()
    assert job["trained"] == {"groups": 1, "trajectories": 2, "sequences": 1, "tokens": 9}
    assert (job["not_trained"], job["warnings"]) == (left_out["counts"], ["2 of 6.", "run 4."])
    assert http.get(JOBS).json()["data"] == [job]
    assert http.post(f"{url}/cancel").json() == {**job, "cancel_requested": True}


def test_events_are_paged_from_a_cursor(http, post, store, claim):
    job_id = post().json()["id"]
    url, claimed = f"{JOBS}/{job_id}/events", claim()
    assert http.get(url).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    store.claims.record_event(claimed, "training_started", {"num_sequences": 4})
    for step in range(4):
        store.claims.record_event(claimed, "gradient_step", {"loss/train": float(step)})
    page = http.get(url, params={"limit": 3}).json()
    assert (len(page["data"]), page["has_more"]) == (3, True)
    rest = http.get(url, params={"after": page["last_id"]}).json()
    assert [event["data"]["loss/train"] for event in rest["data"]] == [2.0, 3.0]
    assert rest["has_more"] is False
    assert http.get(url, params={"after": rest["last_id"]}).json()["data"] == []
    other = post(trajectory_groups=groups(2)).json()["id"]
    refused = http.get(url, params={"after": f"{other}:1"})
    assert refused.json()["detail"][0]["loc"] == ["query", "after"]


def test_jobs_are_listed_newest_first(http, post, claim):
    ids = [post(trajectory_groups=groups(num)).json()["id"] for num in (1, 2, 3)]
    listed = lambda **query: [job["id"] for job in http.get(JOBS, params=query).json()["data"]]  # noqa: E731
    assert listed() == ids[::-1]
    assert listed(limit=2) == [ids[2], ids[1]]
    assert listed(after=ids[1]) == [ids[0]]
    assert listed(order="asc") == ids
    claim()
    assert listed(state="running") == [ids[0]]
    assert listed(model_id=str(uuid.uuid4())) == []
    assert http.get(JOBS, params={"state": "asleep"}).json()["detail"][0]["loc"] == ["query", "state"]


def test_cancelling(http, post, store, claim):
    running, queued = post().json()["id"], post(trajectory_groups=groups(2)).json()["id"]
    claimed = claim()
    assert http.post(f"{JOBS}/{queued}/cancel").json()["state"] == "cancelled"
    answer = http.post(f"{JOBS}/{running}/cancel").json()
    assert (answer["state"], answer["cancel_requested"]) == ("running", True)
    store.claims.cancel(claimed)
    assert http.post(f"{JOBS}/{running}/cancel").json()["state"] == "cancelled"
    [event] = http.get(f"{JOBS}/{queued}/events").json()["data"]
    assert event["type"] == "training_failed"
    assert "cancelled" in event["data"]["error_message"]


def test_a_repeated_post_makes_one_job(post, http, blobs):
    first = post(headers={"Idempotency-Key": "k1"})
    again = post(headers={"Idempotency-Key": "k1"})
    assert again.json() == first.json()
    changed = post(trajectory_groups=groups(2), headers={"Idempotency-Key": "k1"})
    assert changed.status_code == 409
    assert first.json()["id"] in changed.json()["error"]["message"]
    assert post(headers={"Idempotency-Key": "k2"}).json() != first.json()
    assert post(headers={"Idempotency-Key": "k" * 256}).status_code == 422
    assert len(http.get(JOBS).json()["data"]) == len(blobs()) == 2


@pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
def test_the_same_post_many_times_at_once_makes_one_job(post, http, blobs):
    barrier = threading.Barrier(6)

    def send(_):
        barrier.wait()
        return post(headers={"Idempotency-Key": "k"}).json()["id"]

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(send, range(6)))) == 1
    assert len(http.get(JOBS).json()["data"]) == len(blobs()) == 1


@pytest.mark.parametrize("trajectory_groups", [[], [{"trajectories": []}], [{"trajectories": [trajectory(1.0)] * 2}]])
def test_nothing_to_train_is_accepted(http, model, trajectory_groups):
    body = {"model_id": model["id"], "trajectory_groups": trajectory_groups}
    assert http.post(JOBS, json=body).status_code == 200


def test_what_the_artifact_store_refuses_is_not_accepted(post, http, services, blobs, monkeypatch):
    def refuse(file, key):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(services.artifacts, "put_blob_file", refuse)
    response = post()
    assert response.status_code == 503
    assert "Permission denied" in response.json()["error"]["message"]
    assert http.get(JOBS).json()["data"] == []
    assert blobs() == []


def test_a_check_that_fails_is_not_the_senders_fault(post, http, services, blobs):
    def check(*_, arrived):
        raise StageError("prepare", "the process that prepares jobs ran out of memory.", "Send a smaller job.", True)

    services.preparation.check = check
    response = post()
    assert response.status_code == 503
    assert "ran out of memory" in response.json()["error"]["message"]
    assert http.get(JOBS).json()["data"] == []
    assert blobs() == []


def test_faults_behind_the_groups_are_found_in_the_body(http, model, blobs):
    head = f'{{"model_id": "{model["id"]}", "trajectory_groups": {json.dumps(groups(3))}'
    for rest, words in ((", oops}", f"after {len(head) + 2} bytes"), (', "trajectory_groups": []}', "more than once")):
        response = http.post(JOBS, content=head + rest)
        assert response.status_code == 422
        assert words in response.json()["error"]["message"]
    response = http.post(JOBS, content=head[:-5])
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body"]
    assert blobs() == []


@pytest.mark.parametrize(("text", "status"), [("7", 200), (8, 422)], ids=["good", "bad"])
def test_a_large_payload_is_checked_while_it_arrives(http, model, services, blobs, monkeypatch, text, status):
    monkeypatch.setattr(payload_body, "LARGE_BYTES", 1)
    monkeypatch.setattr(services.preparation, "_groups", None)  # no check is left for later
    turns = [{"role": "user", "content": "hi"}, {**choice(), "message": {"role": "assistant", "content": text}}]
    sent = [{"trajectories": [{"messages_and_choices": turns, "reward": reward} for reward in (0.0, 1.0)]}]
    response = http.post(JOBS, json={"model_id": model["id"], "trajectory_groups": sent})
    assert response.status_code == status
    assert len(blobs()) == (status == 200)


@pytest.mark.parametrize("changes", [{"model_id": "unknown"}, {"experimental_config": {"scale_rewards": False}}])
def test_a_large_payload_that_could_not_be_checked_early_is_checked_later(http, model, monkeypatch, changes):
    monkeypatch.setattr(payload_body, "LARGE_BYTES", 1)
    sent = {"model_id": model["id"], "trajectory_groups": groups(), **changes}
    assert http.post(JOBS, json=sent).status_code == (422 if "model_id" in changes else 200)


def test_a_model_deleted_meanwhile_leaves_no_payload(post, http, model, store, services, blobs, monkeypatch):
    put = services.artifacts.put_blob_file

    def put_late(file, key):
        put(file, key)
        store.models.delete(model["id"], "team")

    monkeypatch.setattr(services.artifacts, "put_blob_file", put_late)
    assert post().status_code == 404
    assert blobs() == []


FIRST = ["body", "trajectory_groups", 0, "trajectories", 0]
TURNS = [*FIRST, "messages_and_choices"]
CONFIG = ["body", "experimental_config"]


def first_trajectory(**changes):
    return {"trajectory_groups": [{"trajectories": [{**trajectory(0.0), **changes}, trajectory(1.0)]}]}


def turns(*items):
    return first_trajectory(messages_and_choices=list(items))


USER = {"role": "user", "content": "1 + 6 = ?"}


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        # not the body of a job
        ({"model_id": None}, ["body", "model_id"]),
        ({"model_id": "agent"}, ["body", "model_id"]),
        ({"trajectory_groups": None}, ["body", "trajectory_groups"]),
        ({"trajectory_groups": {}}, ["body", "trajectory_groups"]),
        ({"experimental_confg": {}}, ["body", "experimental_confg"]),
        ({"trajectory_groups": [[]]}, ["body", "trajectory_groups", 0]),
        ({"trajectory_groups": [{"trajectories": None}]}, ["body", "trajectory_groups", 0, "trajectories"]),
        ({"trajectory_groups": [{"trajectories": ["x"]}]}, FIRST),
        # not a trajectory
        (first_trajectory(reward="high"), [*FIRST, "reward"]),
        (first_trajectory(reward=None), [*FIRST, "reward"]),
        (first_trajectory(reward=1e31), [*FIRST, "reward"]),
        (first_trajectory(tools={}), [*FIRST, "tools"]),
        (first_trajectory(metadata=[]), [*FIRST, "metadata"]),
        (first_trajectory(messages_and_choices="hello"), TURNS),
        (turns(42), [*TURNS, 0]),
        (turns({"role": "oracle", "content": "x"}), [*TURNS, 0]),
        (turns({"role": "user", "content": 7}), [*TURNS, 0]),
        (turns(USER, {"role": "tool", "content": "7"}), [*TURNS, 1]),
        (turns(USER, {"finish_reason": "stop", "index": 0}), [*TURNS, 1]),
        (turns(USER, choice(finish_reason="tired")), [*TURNS, 1]),
        (turns(USER, choice(logprob="low")), [*TURNS, 1]),
        # a trajectory whose tokens can't be determined
        (turns(USER, choice(token_ids=(300, 301, 9999))), [*TURNS, 1]),
        (first_trajectory(messages_and_choices=[USER, {**choice(), "token_ids": [300, 301]}]), [*TURNS, 1]),
        # options that can't be honoured
        ({"experimental_config": []}, CONFIG),
        ({"experimental_config": {"learning_rate": -1}}, [*CONFIG, "learning_rate"]),
        ({"experimental_config": {"learning_rate": "fast"}}, [*CONFIG, "learning_rate"]),
        ({"experimental_config": {"learningrate": 1e-5}}, [*CONFIG, "learningrate"]),
        ({"experimental_config": {"importance_sampling_level": "word"}}, [*CONFIG, "importance_sampling_level"]),
        ({"experimental_config": {"ppo": True, "loss_fn": "cispo"}}, CONFIG),
        (
            {"experimental_config": {"kl_penalty_coef": 0.1, "kl_penalty_step_lag": 1, "kl_penalty_reference_step": 0}},
            CONFIG,
        ),
        ({"experimental_config": {"kl_penalty_step_lag": 1}}, CONFIG),
        ({"experimental_config": {"packed_sequence_length": 257}}, [*CONFIG, "packed_sequence_length"]),
    ],
)
def test_a_bad_job_is_refused_with_its_place_and_leaves_nothing(post, http, blobs, changes, place):
    response = post(**changes)
    assert response.status_code == 422, response.text
    body = response.json()
    places = [fault["loc"] for fault in body["detail"]]
    assert any(loc[: len(place)] == place for loc in places), places
    assert all(set(fault) == {"loc", "msg", "type"} for fault in body["detail"])
    assert body["error"]["message"].startswith(".".join(map(str, places[0])))
    assert http.get(JOBS).json()["data"] == []
    assert blobs() == []


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "EOF while parsing"),
        (b"{", "line 1 column 1"),
        (b'{"model_id": \n  oops}', "line 2 column 3"),
        (b"\xff\xfe", "line 1 column 1"),
        (b'"a string"', "object"),
        (b"null", "object"),
        (b"[" * 5000, "recursion limit"),
        (b'{"model_id": "\\ud800"}', "hex escape"),
    ],
)
def test_malformed_json_is_refused_with_its_position(http, model, raw, message):
    response = http.post(JOBS, content=raw, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"][0]["loc"] == ["body"]
    assert message in response.json()["error"]["message"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E+400"])
@pytest.mark.parametrize(
    ("where", "place"),
    [
        ("reward", [*FIRST, "reward"]),
        ("metadata", [*FIRST, "metadata", "note"]),
        ("logprob", [*TURNS, 1, "logprobs", "content", 0, "logprob"]),
    ],
)
def test_numbers_that_json_has_not_are_refused_by_name(http, model, blobs, where, place, number):
    changes = {"reward": "@"} if where == "reward" else {"metadata": {"note": "@"}} if where == "metadata" else {}
    turn = choice(logprob="@") if where == "logprob" else choice()
    body = {"model_id": model["id"], **first_trajectory(messages_and_choices=[USER, turn], **changes)}
    response = http.post(JOBS, content=json.dumps(body).replace('"@"', number))
    assert response.status_code == 422
    places = [[part for part in fault["loc"] if part not in ("choice", "float")] for fault in response.json()["detail"]]
    assert place in places
    assert blobs() == []


def test_words_that_look_like_such_numbers_are_no_fault(post):
    said = "NaN, Infinity and 1e999 are not numbers"
    assert post(**turns({"role": "user", "content": said}, choice())).status_code == 200


def test_a_long_list_of_faults_is_cut(post):
    response = post(trajectory_groups=[{"trajectories": [{"reward": "x"} for _ in range(500)]}])
    detail = response.json()["detail"]
    assert len(detail) == 51
    assert detail[-1]["msg"] == "here and in 449 more places"


def test_unknown_models_are_not_found(post):
    response = post(model_id=str(uuid.uuid4()))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_failed_job_says_stage_cause_and_remedy_apart(http, post, store, claim):
    job_id = post().json()["id"]
    about = {"stage": "step", "cause": "The loss isn't finite.", "remedy": "Lower learning_rate."}
    store.claims.fail(claim(), "Stage 'step' failed.", about)
    last = http.get(f"{JOBS}/{job_id}/events").json()["data"][-1]
    assert last["data"] == {"error_message": "Stage 'step' failed.", **about}
    assert http.get(f"{JOBS}?kind=rl").json()["data"][0]["id"] == job_id
    assert http.get(f"{JOBS}?kind=sft").json()["data"] == []
