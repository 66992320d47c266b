"""Checkpoints of runs and versions of models, by their addresses."""

import json

import pytest

from tandem.cluster.calls.call import SaveRefusedError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.errors import BadRequestError, ConflictError, GoneError, NotFoundError
from tandem.serve.store.policies.tree import MakingJob, Parent
from tandem.serve.tinker.store.outcomes import Answered, Failed
from tandem.serve.tinker.store.runs import Start
from tandem.serve.tinker.store.saves import save_options

BASE = "tandem/tiny"
BOTH = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


def result(answered):
    assert isinstance(answered, Answered), answered
    return json.loads(answered.content)


@BOTH
def test_a_saved_state_has_an_address(client, run):
    path = f"tinker://{run.id}/weights/first"
    saved = client.save(name="first", user_metadata={"epoch": "1"})
    assert result(saved) == {"path": path, "type": "save_weights"}
    found = client.tinker.checkpoints.resolve("team", path)
    assert (found.digest, found.has_optimizer, found.step, found.num_bytes) == ("d1", True, None, 100)
    assert (found.run_id, found.base_model, found.user_metadata) == (run.id, BASE, {"epoch": "1"})
    rows, total = client.tinker.checkpoints.page("team", 10)
    assert ([row.path for row in rows], total) == ([path], 1)
    assert client.tinker.checkpoints.page("team", 10, run_id="another") == ([], 0)
    for entity, other in (("others", path), ("team", f"tinker://{run.id}/sampler_weights/first")):
        with pytest.raises(NotFoundError):
            client.tinker.checkpoints.resolve(entity, other)


@BOTH
def test_a_save_for_sampling_is_a_version_of_the_model(store, client, run, clock):
    mark = store.changes.models()[run.model_id].next_step
    saved = client.save("save_for_sampler", "d1", name="first")
    path = f"tinker://{run.id}/sampler_weights/first"
    assert result(saved) == {"path": path, "type": "save_weights_for_sampler"}
    client.save("save_for_sampler", "d2", name="second")
    model = store.models.get(run.model_id, "team")
    assert (mark, model.next_step) == (1, 3)
    assert store.changes.models()[model.id].next_step == 3
    assert store.versions.resolve("team", "tinker", model.name, None).digest == "d2"
    assert store.versions.imported_steps([model.id]) == {}
    found = client.tinker.checkpoints.resolve("team", path)
    assert (found.digest, found.step, found.has_optimizer) == ("d1", 1, True)
    nodes = store.tree.nodes(model.id, "team")
    assert [(node.run_id, node.checkpoint_name, node.parent) for node in nodes] == [
        (None, None, None),
        (run.id, "first", Parent(model.id, 0)),
        (run.id, "second", Parent(model.id, 1)),
    ]


@BOTH
def test_a_save_for_a_sampler_makes_the_sampler(store, client, run, session):
    saved = result(client.save("save_for_sampler", sampler_seq=7))
    assert saved == {"sampling_session_id": f"{session.id}:sample:7", "type": "save_weights_for_sampler"}
    sampler = client.tinker.samplers.get("team", saved["sampling_session_id"])
    assert (sampler.digest, sampler.step, sampler.model_id, sampler.path) == ("d1", 1, run.model_id, None)
    assert client.tinker.checkpoints.page("team", 10) == ([], 0), "it has no name"
    failed = client.save("save_for_sampler", "d2", sampler_seq=7)
    assert (type(failed), failed.category) == (Failed, "user")
    assert [row.step for row in store.versions.page(run.model_id, "team", 10)] == [1]
    with pytest.raises(NotFoundError):
        client.tinker.samplers.get("others", sampler.id)


@BOTH
@pytest.mark.parametrize("kind", ["save_weights", "save_for_sampler"])
def test_a_name_is_given_once(store, client, run, kind):
    client.save(kind, "d1", name="one")
    failed = client.save(kind, "d2", name="one")
    assert (type(failed), failed.category) == (Failed, "user")
    folder = "weights" if kind == "save_weights" else "sampler_weights"
    path = f"tinker://{run.id}/{folder}/one"
    assert client.tinker.checkpoints.resolve("team", path).digest == "d1"
    client.tinker.claims.release(client.claimed)
    client.submit("optim_step")
    assert client.claim().anchor.digest == "d2", "the state was saved nevertheless"
    client.answer()
    client.tinker.checkpoints.delete("team", path)
    assert isinstance(client.save(kind, "d3", name="one"), Answered)
    if kind == "save_for_sampler":
        assert [row.step for row in store.versions.page(run.model_id, "team", 10)] == [2]


@BOTH
@pytest.mark.parametrize("kind", ["save_weights", "save_for_sampler"])
def test_a_save_whose_name_is_taken_can_be_refused_before_it_is_made(client, run, kind):
    def check(**options):
        client.submit(kind, options=save_options(**{"name": "one", **options}))
        try:
            return client.tinker.claims.check_save(client.claimed, client.next())
        finally:
            client.refuse()

    client.save(kind, "d1", name="one")
    path = f"tinker://{run.id}/{'weights' if kind == 'save_weights' else 'sampler_weights'}/one"
    with pytest.raises(SaveRefusedError, match=path):
        check()
    next_step = 1 if kind == "save_weights" else 2
    assert check(name="two") == next_step
    if kind == "save_weights":
        assert check(overwrite=True) == check(is_export=True) == next_step
    client.tinker.checkpoints.delete("team", path)
    assert check() == next_step


@BOTH
def test_a_state_can_be_overwritten(client, run):
    client.save(digest="d1", name="last")
    client.save(digest="d2", name="last", overwrite=True)
    assert client.tinker.checkpoints.resolve("team", f"tinker://{run.id}/weights/last").digest == "d2"
    assert client.tinker.checkpoints.page("team", 10)[1] == 1


@BOTH
@pytest.mark.parametrize("kind", ["save_weights", "save_for_sampler"])
def test_a_checkpoint_expires(store, client, run, clock, kind):
    client.save(kind, "d1", name="brief", ttl_s=3600)
    folder = "weights" if kind == "save_weights" else "sampler_weights"
    path = f"tinker://{run.id}/{folder}/brief"
    client.save(kind, "d2", name="kept")
    clock.advance(3601)
    with pytest.raises(NotFoundError):
        client.tinker.checkpoints.resolve("team", path)
    assert [row.name for row in client.tinker.checkpoints.page("team", 10)[0]] == ["kept"]
    assert store.run_upkeep.expire_checkpoints() == [path]
    assert store.run_upkeep.expire_checkpoints() == []
    if kind == "save_for_sampler":
        assert [row.step for row in store.versions.page(run.model_id, "team", 10)] == [2]
    kept = client.tinker.checkpoints.set_ttl("team", path.replace("brief", "kept"), 60)
    assert (kept.expires_at - clock.now).total_seconds() == 60
    client.tinker.checkpoints.set_ttl("team", path.replace("brief", "kept"), None)
    clock.advance(61)
    assert store.run_upkeep.expire_checkpoints() == []


@BOTH
def test_a_deleted_version_is_no_checkpoint_and_a_kept_one_cannot_be_deleted(store, client, run):
    client.save("save_for_sampler", "d1", name="one")
    client.save("save_for_sampler", "d2", name="two")
    path = f"tinker://{run.id}/sampler_weights"
    store.versions.delete(run.model_id, "team", [1])
    with pytest.raises(NotFoundError):
        client.tinker.checkpoints.resolve("team", f"{path}/one")
    store.versions.keep(run.model_id, "team", 2, True)
    with pytest.raises(ConflictError):
        client.tinker.checkpoints.delete("team", f"{path}/two")
    store.versions.keep(run.model_id, "team", 2, False)
    client.tinker.checkpoints.delete("team", f"{path}/two")
    assert store.versions.page(run.model_id, "team", 10) == []
    with pytest.raises(NotFoundError):
        client.tinker.checkpoints.delete("team", f"{path}/two")


@BOTH
def test_others_read_a_public_checkpoint_and_do_not_change_it(client, run):
    client.save(name="one")
    path = f"tinker://{run.id}/weights/one"
    client.tinker.checkpoints.publish("team", path)
    assert client.tinker.checkpoints.resolve("others", path).entity == "team"
    assert client.tinker.checkpoints.page("others", 10) == ([], 0)
    for change in (client.tinker.checkpoints.delete, client.tinker.checkpoints.publish):
        with pytest.raises(NotFoundError):
            change("others", path)
    client.tinker.checkpoints.publish("team", path, is_public=False)
    with pytest.raises(NotFoundError):
        client.tinker.checkpoints.resolve("others", path)


@BOTH
def test_versions_of_any_model_have_addresses(store, tinker, add_model, add_job, claim):
    model = add_model()
    add_job(model)
    claimed = claim()
    store.claims.complete(claimed, PolicyVersion(model.id, 1, "d1"), {})
    for kind in ("weights", "sampler_weights"):
        found = tinker.checkpoints.resolve("team", f"tinker://{model.id}/{kind}/step1")
        assert (found.digest, found.step, found.has_optimizer, found.run_id) == ("d1", 1, True, None)
    initial = tinker.checkpoints.resolve("team", f"tinker://{model.id}/weights/step0")
    assert (initial.digest, initial.has_optimizer) == ("0" * 64, False)
    for entity, step in (("others", 1), ("team", 2)):
        with pytest.raises(NotFoundError):
            tinker.checkpoints.resolve(entity, f"tinker://{model.id}/weights/step{step}")
    with pytest.raises(NotFoundError):
        tinker.checkpoints.resolve("team", f"tinker://{model.id}/weights/last")
    for wrong in ("step1", "tinker://a/b", "tinker://a/weights/b/c", "tinker://a/other_weights/b", "/etc/passwd"):
        with pytest.raises(BadRequestError):
            tinker.checkpoints.resolve("team", wrong)


@BOTH
def test_a_run_continues_a_version_that_a_job_made(store, tinker, add_model, add_job, claim, new_client):
    model = add_model()
    add_job(model)
    store.claims.complete(claim(), PolicyVersion(model.id, 1, "d1"), {})
    client = new_client(start=Start(f"tinker://{model.id}/weights/step1", True))
    client.submit("optim_step")
    claimed = client.claim()
    assert (claimed.anchor.digest, claimed.anchor.has_optimizer) == ("d1", True)
    own = store.models.get(client.run.model_id, "team")
    assert store.versions.resolve("team", "tinker", own.name, None).digest == "d1"
    assert own.origin["model_id"] == model.id
    client.answer()
    client.submit("save_for_sampler", options=save_options("second"))
    assert client.tinker.claims.check_save(claimed, client.next()) == 2
    client.refuse()
    client.save("save_for_sampler", "d2", name="one")
    nodes = store.tree.nodes(own.id, "team")
    assert [node.parent for node in nodes[1:]] == [Parent(model.id, 1, model.path), Parent(own.id, 1)]
    source = store.tree.nodes(model.id, "team")[1]
    assert [fork.id for fork in source.forks] == [own.id]
    assert isinstance(source.job, MakingJob)
    created = client.tinker.calls.outcome(f"call/{client.run.id}/0", "team")
    assert result(created)["type"] == "load_weights"


@BOTH
def test_a_run_begins_with_a_saved_state_of_another(store, client, new_client):
    client.submit("forward_backward")
    client.claim()
    client.answer()
    client.save("save_for_sampler", "d2", name="a")
    client.save(digest="d3", name="b")
    path = f"tinker://{client.run.id}/weights/b"
    second = new_client(start=Start(path, False))
    second.submit("optim_step")
    anchor = second.claim().anchor
    assert (anchor.digest, anchor.has_optimizer) == ("d3", False)
    [first, node] = store.tree.nodes(second.run.model_id, "team")
    assert (first.step, node.digest, node.parent.model_id, node.parent.step) == (0, "d3", client.run.model_id, 1)
    assert not node.has_optimizer
    with pytest.raises(NotFoundError):
        new_client(start=Start(f"tinker://{client.run.id}/weights/c", False))


@BOTH
def test_a_call_loads_a_checkpoint(client, new_client):
    client.save(digest="d1", name="one")
    other = new_client()
    path = f"tinker://{client.run.id}/weights/one"
    other.submit("load_weights", options={"path": path, "optimizer": True})
    other.claim()
    assert other.next().options["digest"] == "d1"
    with pytest.raises(NotFoundError):
        other.submit("load_weights", options={"path": path + "x", "optimizer": True})
    request = other.tinker.calls.submit_refused("team", other.run.id, 2, "load_weights", "x", "no such checkpoint")
    assert other.tinker.calls.outcome(request, "team") == Failed("no such checkpoint", "user")


@BOTH
def test_samplers_are_pinned(store, tinker, client, session, clock):
    client.save("save_for_sampler", "d1", name="one")
    path = f"tinker://{client.run.id}/sampler_weights/one"
    sampler = tinker.samplers.create("team", "key", session.id, 1, None, path)
    assert tinker.samplers.create("team", "key", session.id, 1, None, path).id == sampler.id
    assert (sampler.digest, sampler.step, sampler.base_model) == ("d1", 1, BASE)
    base = tinker.samplers.create("team", "key", session.id, 2, BASE, None)
    assert (base.digest, base.model_id) == ("0" * 64, None)
    assert tinker.samplers.of_session(session.id) == [sampler.id, base.id]
    with pytest.raises(BadRequestError):
        tinker.samplers.create("team", "key", session.id, 1, BASE, None)
    with pytest.raises(BadRequestError):
        tinker.samplers.create("team", "key", session.id, 3, "another", path)
    with pytest.raises(BadRequestError):
        tinker.samplers.create("team", "key", session.id, 3, None, None)
    with pytest.raises(NotFoundError):
        tinker.samplers.create("others", "key", session.id, 3, BASE, None)
    with pytest.raises(NotFoundError):
        tinker.samplers.create("team", "key", session.id, 3, None, path + "x")
    tinker.checkpoints.delete("team", path)
    assert tinker.samplers.get("team", sampler.id).digest == "d1"


def test_a_retired_version_is_gone(store, tinker, new_client):
    client = new_client()
    for number in range(3):
        client.save("save_for_sampler", f"d{number}", sampler_seq=number)
    client.tinker.sessions.finish("team", client.run.session_id)
    assert len(store.retention.retire(1)) == 2
    with pytest.raises(GoneError):
        tinker.checkpoints.resolve("team", f"tinker://{client.run.model_id}/sampler_weights/step1")
