"""Files that runs need stay, all others are deleted, and results end by time."""

import hashlib
from datetime import timedelta

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.calls.call import Anchor
from tandem.serve.errors import GoneError
from tandem.serve.jobs.sweeping import sweep, sweep_runs
from tandem.serve.store.tables.tinker import CallRow, RunCheckpointRow
from tandem.serve.tinker.store.runs import Start

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


def digest(name):
    return hashlib.sha256(name.encode()).hexdigest()


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path / "artifacts"))


@pytest.fixture
def write(artifacts):
    def write(name):
        folder = artifacts.checkpoints_dir / digest(name)
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
        return digest(name)

    return write


@pytest.fixture
def kept(store, artifacts, clock):
    """Sweep, and return which of these checkpoints are left."""

    def kept(*names):
        sweep_runs(store, artifacts, 3600, clock.now - timedelta(hours=2))
        left = {path.name for path in artifacts.checkpoints_dir.iterdir()}
        return [name for name in names if digest(name) in left]

    return kept


def test_replaced_anchors_are_deleted(store, client, write, kept):
    client.submit("optim_step")
    client.submit("optim_step")
    client.claim()
    client.answer()
    client.tinker.claims.set_anchor(client.claimed, Anchor(write("one"), 1, True))
    assert kept("one") == ["one"]
    client.answer()
    client.tinker.claims.set_anchor(client.claimed, Anchor(write("two"), 2, True))
    assert kept("one", "two") == ["two"]
    client.tinker.runs.unload("team", client.run.id)
    assert kept("two") == []
    with store.database.read() as session:
        assert session.query(RunCheckpointRow).all() == []


def test_a_saved_state_stays_until_it_is_deleted_and_no_anchor(client, write, kept):
    client.save(digest=write("one"), name="one")
    client.tinker.checkpoints.delete("team", f"tinker://{client.run.id}/weights/one")
    assert kept("one") == ["one"], "the run continues from it"
    client.save(digest=write("two"), name="two")
    assert kept("one", "two") == ["two"]
    client.tinker.runs.unload("team", client.run.id)
    assert kept("two") == ["two"]
    client.tinker.checkpoints.delete("team", f"tinker://{client.run.id}/weights/two")
    assert kept("two") == []


def test_a_checkpoint_that_a_call_will_load_stays(client, new_client, write, kept, clock):
    client.save(digest=write("one"), name="one", ttl_s=3600)
    client.tinker.runs.unload("team", client.run.id)
    other = new_client()
    other.submit("load_weights", options={"path": f"tinker://{client.run.id}/weights/one", "optimizer": False})
    clock.advance(3601)
    assert kept("one") == ["one"]
    other.claim()
    other.answer(anchor=Anchor(digest("one"), 1, False))
    assert kept("one") == ["one"], "it is the other run's anchor"
    other.save(digest=write("two"), name="two")
    assert kept("one", "two") == ["two"]


def test_a_run_keeps_the_checkpoint_that_it_began_with(client, new_client, write, kept):
    client.save("save_for_sampler", write("one"), name="one")
    client.tinker.runs.unload("team", client.run.id)
    path = f"tinker://{client.run.id}/sampler_weights/one"
    second = new_client(start=Start(path, True))
    client.tinker.checkpoints.delete("team", path)
    assert kept("one") == ["one"]
    second.save(digest=write("two"), name="two")
    assert kept("one") == ["one"], "it is version 1 of the second model"


def test_what_is_sampled_stays(store, client, write, kept, clock):
    client.save("save_for_sampler", write("one"), sampler_seq=1)
    client.save("save_for_sampler", write("two"), sampler_seq=2)
    store.versions.delete(client.run.model_id, "team", [1])
    assert kept("one", "two") == ["one", "two"]
    assert store.retention.surplus_versions(1) == []
    clock.advance(3601)
    assert kept("one", "two") == ["two"], "the client is silent"
    client.tinker.sessions.heartbeat("team", client.run.session_id)


def test_retention_leaves_named_checkpoints_alone(store, client, clock):
    for number in range(4):
        name = "named" if number == 1 else None
        seq = None if number == 1 else number
        client.save("save_for_sampler", f"d{number}", name=name, sampler_seq=seq)
    client.tinker.sessions.finish("team", client.run.session_id)
    assert [surplus.step for surplus in store.retention.retire(1)] == [1, 3]


def test_an_expired_optimizer_state_stays_while_a_run_needs_it(store, client, clock):
    for number in range(3):
        client.save("save_for_sampler", f"d{number}", sampler_seq=number)
    store.retention.expire_optimizers(1)
    clock.advance(10)
    assert set(store.retention.removable_optimizers(clock.now)) == {"d0", "d1"}
    client.tinker.claims.release(client.claimed)
    client.save(digest="d1", name="same")
    assert store.retention.removable_optimizers(clock.now) == ["d0"]


def test_a_checkpoint_that_may_be_saved_again_stays(client, write, kept):
    client.save(digest=write("one"), name="one")
    client.submit("optim_step")
    client.answer()
    client.tinker.claims.set_anchor(client.claimed, Anchor(write("two"), 2, True))
    client.tinker.checkpoints.delete("team", f"tinker://{client.run.id}/weights/one")
    client.submit("save_weights")
    assert kept("one", "two") == ["one", "two"]
    client.refuse()
    assert kept("one", "two") == ["two"]


def test_bodies_of_calls_without_a_row_are_deleted(store, client, artifacts, clock):
    client.submit("forward_backward")
    known, lost = f"calls/{client.run.id}-1", "calls/lost"
    for key in (known, lost):
        artifacts.write_blob(key, b"body")
    assert sweep(store, artifacts, clock.now.replace(year=2999)) == [lost]
    client.claim()
    client.answer()
    assert sweep(store, artifacts, clock.now.replace(year=2999)) == []
    client.tinker.claims.set_anchor(client.claimed, Anchor("d", 1, True))
    assert sweep(store, artifacts, clock.now.replace(year=2999)) == [known]


def test_old_results_and_calls_are_forgotten(store, client, clock):
    request = client.submit("forward_backward")
    client.submit("optim_step")
    client.claim()
    client.answer(b"big")
    client.answer()

    def rows():
        with store.database.read() as session:
            return [(row.seq, row.result) for row in session.query(CallRow).order_by(CallRow.seq)]

    store.run_upkeep.forget_results(3600)
    assert rows() == [(1, b"big"), (2, b"{}")]
    clock.advance(3601)
    store.run_upkeep.forget_results(3600)
    assert rows() == [(1, None), (2, None)]
    clock.advance(timedelta(days=2).total_seconds())
    store.run_upkeep.forget_results(3600)
    assert len(rows()) == 2, "they are replayed"
    client.tinker.claims.set_anchor(client.claimed, Anchor("d", 2, True))
    store.run_upkeep.forget_results(3600)
    assert rows() == []
    assert client.submit("forward_backward", 1) == request
    with pytest.raises(GoneError):
        client.tinker.calls.outcome(request, "team")
    assert client.submit("optim_step", 3) == f"call/{client.run.id}/3"
