"""Sampling clients of the unmodified SDK, with engines that keep samples as real ones do."""

import asyncio
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
import tinker
from sample_engines import SampleEngines
from tinker import types

from tandem.cluster.engine.samples.sample_body import SampleError
from tandem.cluster.engine.samples.samples_app import CANCEL_PATH, FETCH_PATH, START_PATH
from tandem.serve.keys import create_key
from tandem.serve.tinker.sampling import sampling
from tandem.serve.tinker.sampling.sample_ids import SampleId

BASE = "tandem/tiny"
PROMPT = types.ModelInput.from_ints([1, 2, 3])
PARAMS = types.SamplingParams(max_tokens=4)


@pytest.fixture
def engines():
    return SampleEngines()


@pytest.fixture
def services(services, engines):
    tinker_config = services.config.tinker.model_copy(update={"hold_s": 0.5})
    config = services.config.model_copy(update={"tinker": tinker_config})
    return replace(services, engine=engines, config=config)


@pytest.fixture
def service(address, app, key):
    with tinker.ServiceClient(base_url=address, api_key=f"tml-{key}") as service:
        yield service


@pytest.fixture
def client(service):
    return service.create_sampling_client(base_model=BASE)


def test_samples_come_back_with_names_of_their_own(client, engines, services):
    answer = client.sample(PROMPT, 2, PARAMS).result(timeout=60)
    assert [own.tokens for own in answer.sequences] == [[3, 3, 3, 3]] * 2
    assert len({own.sequence_id for own in answer.sequences}) == 2
    assert client.compute_logprobs(PROMPT).result(timeout=60) == [None, -1, -1]
    [(digest, charged), _] = engines.charged
    assert digest == services.store.versions.resolve_base(BASE).digest
    assert (charged.purpose, charged.entity, charged.model_id) == ("sample", "team", "")
    assert charged.key_id


def test_a_client_knows_its_model_and_can_be_passed_on(client, monkeypatch, key):
    monkeypatch.setenv("TINKER_API_KEY", f"tml-{key}")
    assert client.get_base_model() == BASE
    copies = [
        pickle.loads(pickle.dumps(client)),
        tinker.SamplingClient.from_sampler_handle(client.get_sampler_handle()),
    ]
    for copy in copies:
        assert len(copy.sample(PROMPT, 1, PARAMS).result(timeout=60).sequences) == 1


def test_a_version_of_a_model_is_sampled_and_charged_to_it(service, run, executor, engines, tinker_store, post):
    executor.start()
    saved = post("save_weights_for_sampler", model_id=run, seq_id=1, path="first")
    client = service.create_sampling_client(model_path=f"tinker://{run}/sampler_weights/first")
    assert saved["request_id"] and client.get_base_model() == BASE
    client.sample(PROMPT, 1, PARAMS).result(timeout=60)
    [(digest, charged)] = engines.charged
    checkpoint = tinker_store.checkpoints.resolve("team", f"tinker://{run}/sampler_weights/first")
    assert digest == checkpoint.digest
    assert (charged.model_id, charged.step) == (checkpoint.model_id, checkpoint.step)


def test_what_cant_be_sampled_is_the_users_error_by_name(client):
    with pytest.raises(tinker.BadRequestError, match="temperature"):
        client.sample(PROMPT, 1, types.SamplingParams(temperature=9)).result(timeout=60)
    with pytest.raises(tinker.BadRequestError, match="prompt"):
        client.sample(types.ModelInput.from_ints([9999]), 1, PARAMS).result(timeout=60)


def test_a_large_result_is_announced_and_then_fetched(client, engines, monkeypatch):
    monkeypatch.setattr("tandem.serve.tinker.api.outcome_answers.MAX_INLINE_BYTES", 10)
    assert len(client.sample(PROMPT, 1, PARAMS).result(timeout=60).sequences) == 1
    assert [path for path, _ in engines.asked] == [START_PATH, FETCH_PATH, FETCH_PATH]


def test_a_failure_while_sampling_has_its_category(client, engines):
    async def fail(progress):
        raise SampleError("the weights have diverged")

    engines.before = fail
    with pytest.raises(tinker.RequestFailedError, match="diverged") as failed:
        client.sample(PROMPT, 1, PARAMS).result(timeout=60)
    assert failed.value.category == types.RequestErrorCategory.User


def test_a_sleeping_engine_is_shown_as_a_pause_and_the_sample_waits(client, engines, caplog):
    may_sample = threading.Event()

    async def sleep(progress):
        progress.is_paused, progress.reason = True, "learners use the memory"
        while not may_sample.is_set():
            await asyncio.sleep(0.01)

    engines.before = sleep
    with caplog.at_level(logging.WARNING):
        sampled = client.sample(PROMPT, 1, PARAMS)
        while not any("learners use the memory" in record.getMessage() for record in caplog.records):
            assert not sampled.future().done()
        may_sample.set()
        assert len(sampled.result(timeout=60).sequences) == 1


def test_an_engine_that_starts_is_shown_as_a_pause_and_the_sample_is_sent_again(client, engines, caplog, monkeypatch):
    monkeypatch.setattr(sampling, "PLACE_S", 0.05)
    replicas, engines.replicas = engines.replicas, {}
    with caplog.at_level(logging.WARNING):
        sampled = client.sample(PROMPT, 1, PARAMS)
        while not any(f"The engine of {BASE} starts" in record.getMessage() for record in caplog.records):
            assert not sampled.future().done()
        engines.replicas = replicas
        assert len(sampled.result(timeout=60).sequences) == 1


def test_a_lost_replica_makes_the_client_send_its_sample_again(client, engines):
    started = threading.Event()

    async def hang_started(progress):
        started.set()
        await hang(progress)

    engines.before = hang_started
    sampled = client.sample(PROMPT, 1, PARAMS)
    assert started.wait(60)
    engines.before = engines._nothing
    engines.replicas = {"r2": engines._new()}
    assert len(sampled.result(timeout=60).sequences) == 1
    assert engines.asked[-1] == (FETCH_PATH, "r2")


class Held:
    """Holds the first request for a path until it may pass. Then it says that it was reached."""

    def __init__(self, path):
        self.path, self.reached, self.may_pass = path, threading.Event(), threading.Event()

    async def __call__(self, path):
        if path == self.path and not self.reached.is_set():
            self.reached.set()
            while not self.may_pass.is_set():
                await asyncio.sleep(0.01)


@pytest.fixture
def left(monkeypatch):
    """Set once the API has noticed that the client of a new sample left."""
    left, abort = threading.Event(), sampling.Sampling.abort
    monkeypatch.setattr(sampling.Sampling, "abort", lambda *own: (abort(*own), left.set()))
    return left


def wait_until(is_so):
    deadline = time.monotonic() + 30  # less than `sample_abandoned_s`
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def hang(_):
    await asyncio.sleep(1000)


@pytest.mark.parametrize("place", ["on_the_way", "on_the_way_back"])
def test_a_sample_that_is_cancelled_while_it_is_sent_is_aborted_at_once(client, engines, left, place):
    sending, engines.before = Held(START_PATH), hang
    setattr(engines, place, sending)
    sampled = client.sample(PROMPT, 1, PARAMS)
    assert sending.reached.wait(60)
    sampled.future().cancel()
    assert left.wait(60)
    sending.may_pass.set()
    futures = engines.replicas["r1"].futures
    wait_until(lambda: (CANCEL_PATH, "r1") in engines.asked and futures.num_waiting == 0)
    assert [path for path, _ in engines.asked] == [START_PATH, CANCEL_PATH]


def test_a_sample_that_its_client_sends_again_after_a_lost_answer_continues(
    post, session, address, key, engines, left, services
):
    made = post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model=BASE)
    prompt = {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}
    body = {"sampling_session_id": made["sampling_session_id"], "seq_id": 0, "prompt": prompt, "sampling_params": {}}
    may_end = threading.Event()

    async def compute(_):
        while not may_end.is_set():
            await asyncio.sleep(0.01)

    answering = engines.on_the_way_back = Held(START_PATH)
    aborting = engines.on_the_way = Held(CANCEL_PATH)
    engines.before = compute
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=address, headers=headers) as http, pytest.raises(httpx.ReadTimeout):
        http.post("/api/v1/asample", json=body, timeout=1)
    assert answering.reached.is_set() and left.wait(60)
    answering.may_pass.set()
    assert aborting.reached.wait(60)
    with httpx.Client(base_url=address, headers=headers, timeout=60) as http:
        id = http.post("/api/v1/asample", json=body).json()["request_id"]
        aborting.may_pass.set()
        wait_until(lambda: engines.asked[-1] == (CANCEL_PATH, "r1"))
        may_end.set()
        assert http.post("/api/v1/retrieve_future", json={"request_id": id}).status_code == 200
    assert len(engines.charged) == 1


def test_beyond_the_limit_clients_are_held_off_and_none_fails(client, engines):
    engines.replicas = {"r1": engines._new(max_waiting=2)}

    async def pause(progress):
        await asyncio.sleep(0.05)

    engines.before = pause
    futures = [client.sample(PROMPT, 1, PARAMS) for _ in range(6)]
    for future in futures:
        assert len(future.result(timeout=60).sequences) == 1
    assert sum(path == START_PATH for path, _ in engines.asked) > 6


def test_many_samples_at_once(client, engines):
    """With one look at the store for each request: the key's."""
    with ThreadPoolExecutor(8) as pool:
        futures = list(pool.map(lambda _: client.sample(PROMPT, 1, PARAMS), range(200)))
    assert all(len(future.result(timeout=60).sequences) == 1 for future in futures)
    assert len(engines.charged) == 200


def test_requests_are_answered_as_the_sdk_expects(post, http, session, engines):
    made = post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model=BASE)
    sampler = made["sampling_session_id"]
    again = post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model=BASE)
    assert again == made
    assert http.get(f"/api/v1/samplers/{sampler}").json() == {"sampler_id": sampler, "base_model": BASE}
    body = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]},
        "sampling_params": {},
    }
    promised = post("asample", **body)
    assert post("asample", **body) == promised and len(engines.charged) == 1
    assert len(promised["sample_sequence_ids"]) == 1
    engines.replicas["r1"] = engines._new(max_waiting=1)
    hanging = asyncio.Event()
    engines.before = lambda progress: hanging.wait()
    held = {**body, "seq_id": 1}
    pending = post("asample", **held)["request_id"]
    waiting = post("retrieve_future", 408, request_id=pending)
    assert (waiting["type"], waiting["queue_state"]) == ("try_again", "active")
    refused = http.post("/api/v1/asample", json={**body, "seq_id": 2})
    assert refused.status_code == 429 and refused.headers["X-Tinker-Sampling-Backpressure"] == "1"
    post("cancel_future", request_id=pending)
    post("retrieve_future", 410, request_id=pending)
    post("retrieve_future", 410, request_id=promised["request_id"])


def test_samples_and_samplers_of_others_dont_exist(post, http, session, store):
    made = post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model=BASE)
    sampler = made["sampling_session_id"]
    stranger = {"Authorization": f"Bearer {create_key(store, 'stranger', 'others', 'admin')}"}
    body = {"sampling_session_id": sampler, "seq_id": 0, "prompt": {"chunks": []}, "sampling_params": {}}
    id = str(SampleId(BASE, "r1", sampler, 0))
    for route, sent in (
        ("asample", body),
        ("retrieve_future", {"request_id": id}),
        ("cancel_future", {"request_id": id}),
    ):
        assert http.post(f"/api/v1/{route}", json=sent, headers=stranger).status_code == 404
    assert http.get(f"/api/v1/samplers/{sampler}", headers=stranger).status_code == 404


@pytest.mark.parametrize("replica", ["a#b/1", None])
def test_the_id_of_a_sample_says_where_it_is(replica):
    sample = SampleId("team/model", replica, "uuid:sample:3", 5 * 10**9)
    assert SampleId.parse(str(sample)) == sample


@pytest.mark.parametrize("text", ["sample/", "sample/a/b/c/x", "sample/a/b/c/01", "sample/a/b/c/1/2"])
def test_other_ids_are_unknown(post, text):
    post("retrieve_future", 404, request_id=text)
