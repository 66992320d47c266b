"""Sessions and runs: each once, their models, and what refuses training jobs."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from tandem.cluster.calls.call import CallResult
from tandem.cluster.errors import LeaseLostError
from tandem.serve.errors import BadRequestError, ConflictError, GoneError, NotFoundError, UnavailableError
from tandem.serve.tinker.store.outcomes import Failed

BASE = "tandem/tiny"
pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


def test_a_session_lives_until_it_is_finished(tinker, session, clock):
    clock.advance(10)
    tinker.sessions.heartbeat("team", session.id)
    assert tinker.sessions.get("team", session.id).heartbeat_at == clock.now
    tinker.sessions.finish("team", session.id)
    finished_at = clock.now
    clock.advance(10)
    tinker.sessions.finish("team", session.id)
    with pytest.raises(GoneError):
        tinker.sessions.heartbeat("team", session.id)
    assert tinker.sessions.get("team", session.id).finished_at == finished_at
    for call in (tinker.sessions.heartbeat, tinker.sessions.finish, tinker.sessions.get):
        with pytest.raises(NotFoundError):
            call("others", session.id)


def test_a_repeated_request_opens_one_session(tinker):
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda _: tinker.sessions.create("team", "key", idempotency_key="k"), range(4)))
    assert len({row.id for row in rows}) == 1
    assert tinker.sessions.create("others", "key", idempotency_key="k").id != rows[0].id
    assert tinker.sessions.create("team", "key").id != tinker.sessions.create("team", "key").id
    found, total = tinker.sessions.page("team", 2)
    assert (len(found), total) == (2, 3)


def test_a_run_is_a_model(store, tinker, session, run):
    assert run.id == f"{session.id}:train:0"
    model = store.models.get(run.model_id, "team")
    assert (model.path, model.base_model) == (f"team/tinker/{session.id}-train-0", BASE)
    assert store.versions.resolve("team", "tinker", model.name, None).digest == "0" * 64
    assert tinker.runs.of_session(session.id) == [run.id]
    [(listed, of)], total = tinker.runs.page("team", 10)
    assert (listed.id, of.id, total) == (run.id, model.id, 1)
    assert tinker.runs.page("others", 10) == ([], 0)
    with pytest.raises(NotFoundError):
        tinker.runs.get("others", run.id)


def test_a_run_can_have_lora_settings_of_its_own(store, tinker, session):
    run = tinker.runs.create("team", None, session.id, 0, BASE, {"rank": 4}, "e" * 64, {})
    model = store.models.get(run.model_id, "team")
    assert (model.lora, model.initial_digest, run.anchor_digest) == ({"rank": 4}, "e" * 64, "e" * 64)
    with pytest.raises(UnavailableError):
        tinker.runs.create("team", None, session.id, 1, "another", None, None, {})


def test_a_repeat_makes_no_second_run(store, tinker, session):
    def create(flags):
        return tinker.runs.create("team", "key", session.id, 3, BASE, None, None, flags)

    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: create({"seed": 1}), range(4)))
    assert {run.id for run in runs} == {f"{session.id}:train:3"}
    assert len(store.models.page("team")) == 1
    with pytest.raises(BadRequestError):
        create({"seed": 2})
    with pytest.raises(NotFoundError):
        tinker.runs.create("others", "key", session.id, 3, BASE, None, None, {})


def test_a_model_that_a_client_trains_refuses_jobs_until_it_is_unloaded(store, tinker, run, add_job):
    model = store.models.get(run.model_id, "team")
    with pytest.raises(ConflictError) as refused:
        add_job(model)
    assert refused.value.code == "model_in_training"
    with pytest.raises(ConflictError):
        store.lineage.check_importable(model.id, "team")
    tinker.runs.unload("team", run.id)
    add_job(model)


def test_deleting_the_model_unloads_its_run(store, client, run):
    request = client.submit("forward_backward")
    client.claim()
    call = client.next()
    deleted = store.models.delete(run.model_id, "team")
    assert deleted.blob_keys == (f"calls/{run.id}-1",)
    failed = client.tinker.calls.outcome(request, "team")
    assert (type(failed), failed.category) == (Failed, "user")
    with pytest.raises(LeaseLostError):
        client.tinker.claims.answer(client.claimed, call, CallResult(b""))
    assert client.tinker.runs.get("team", run.id).unloaded_at is not None
    assert isinstance(client.tinker.calls.outcome(client.submit("optim_step"), "team"), Failed)


def test_a_run_outlives_its_session(store, client, clock):
    client.submit("forward_backward")
    clock.advance(timedelta(days=3).total_seconds())
    client.tinker.sessions.finish("team", client.run.session_id)
    store.run_upkeep.forget_results(3600)
    assert client.claim().id == client.run.id
