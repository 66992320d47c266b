"""Claims of runs: order, leases, fencing, anchors, and each effect once."""

import pytest

from tandem.cluster.calls.call import Anchor, CallResult, CallUsage, SavedState
from tandem.cluster.errors import LeaseLostError
from tandem.serve.store.ledger.sums import Asked

BASE = "tandem/tiny"
pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


def test_a_claim_carries_what_the_run_needs(client, run, session):
    assert client.claim() is None
    client.submit("forward_backward", options={"loss": "ppo"})
    claimed = client.claim()
    assert claimed.policy == f"team/tinker/{session.id}-train-0"
    assert claimed.anchor == Anchor("0" * 64, 0, False)
    assert (claimed.id, claimed.model_id, claimed.base_model) == (run.id, run.model_id, BASE)
    assert (claimed.attempt, claimed.applied_seq, claimed.key_id) == (1, 0, "key")
    [call] = client.tinker.claims.next_calls(claimed)
    assert (call.seq, call.kind, call.options, call.num_bytes) == (1, "forward_backward", {"loss": "ppo"}, 7)
    assert client.claim() is None, "another coordinator claimed it while the lease holds"


def test_the_run_whose_call_has_waited_longest_is_first(new_client, clock):
    first, second = new_client(), new_client()
    second.submit("optim_step")
    clock.advance(1)
    first.submit("optim_step")
    assert first.tinker.claims.ready_runs(BASE) == [second.run.id, first.run.id]
    assert first.claim().id == second.run.id
    assert first.claim().id == first.run.id
    assert first.tinker.claims.ready_runs(BASE) == [second.run.id, first.run.id]
    assert first.tinker.claims.ready_runs("another") == []


def test_a_lost_claim_changes_nothing(client, clock):
    client.submit("forward_backward")
    lost = client.claim("first")
    [call] = client.tinker.claims.next_calls(lost)
    clock.advance(31)
    client.claim("second")
    for change in (
        lambda claims: claims.answer(lost, call, CallResult(b"late")),
        lambda claims: claims.refuse(lost, call, "late", "server"),
        lambda claims: claims.renew(lost, 30),
        lambda claims: claims.set_anchor(lost, Anchor("d", 1, True)),
        lambda claims: claims.report_waiting(lost, "x"),
        lambda claims: claims.next_calls(lost),
        lambda claims: claims.answered_since_anchor(lost),
    ):
        with pytest.raises(LeaseLostError):
            change(client.tinker.claims)
    client.tinker.claims.release(lost)
    client.tinker.claims.renew(client.claimed, 30)
    assert client.next() == call


def test_a_released_or_expired_claim_can_be_claimed_again(client, clock):
    client.submit("forward_backward")
    client.claim()
    client.tinker.claims.release(client.claimed)
    assert client.claim().attempt == 2
    clock.advance(31)
    assert client.claim().attempt == 3


def test_an_unloaded_run_is_fenced(client):
    client.submit("forward_backward")
    call = client.claim() and client.next()
    client.tinker.runs.unload("team", client.run.id)
    with pytest.raises(LeaseLostError):
        client.tinker.claims.answer(client.claimed, call, CallResult(b""))
    client.tinker.claims.release(client.claimed)


def test_a_call_that_fails_is_charged_for_its_tries_once(store, client, clock):
    client.submit("forward_backward")
    client.claim()
    call, usage = client.next(), CallUsage(seconds=2.0, learner_seconds=0.5, cpu_seconds=0.25)
    for _ in range(2):
        client.tinker.claims.refuse(client.claimed, call, "out of memory", "user", usage)
    begin = clock.now.replace(minute=0, second=0, microsecond=0)
    [found], _ = store.usage_sums.sums(Asked("team", begin, clock.now.replace(year=2027), ("phase",)))
    used = found.amounts
    assert (used.seconds, used.learner_seconds, used.cpu_seconds, used.trained_tokens) == (2.0, 0.5, 0.25, 0)


def test_an_answer_counts_once(store, client, clock):
    client.submit("forward_backward")
    client.submit("forward")
    client.submit("optim_step")
    client.claim()
    call = client.next()
    usage = CallUsage(trained_tokens=10, learner_seconds=0.5)
    for _ in range(2):
        client.tinker.claims.answer(client.claimed, call, CallResult(b"1", usage=usage))
    client.tinker.claims.refuse(client.claimed, call, "late", "server")
    client.answer(usage=CallUsage(scored_tokens=5, learner_seconds=0.25))
    client.answer(usage=CallUsage(learner_seconds=0.125))
    begin = clock.now.replace(minute=0, second=0, microsecond=0)
    asked = Asked("team", begin, clock.now.replace(year=2027), ("phase", "key", "model"))
    sums, _ = store.usage_sums.sums(asked)
    found = {
        dict(one.group)["phase"]: (
            one.amounts.trained_tokens,
            one.amounts.scored_tokens,
            one.amounts.learner_seconds,
        )
        for one in sums
    }
    assert found == {
        "forward_backward": (10, 0, 0.5),
        "forward": (0, 5, 0.25),
        "optim_step": (0, 0, 0.125),
    }
    assert {(dict(one.group)["key"], dict(one.group)["model"]) for one in sums} == {("key", client.run.model_id)}


def test_what_follows_the_anchor_is_replayed(client):
    for kind in ("forward_backward", "forward", "optim_step", "forward_backward"):
        client.submit(kind)
    client.claim()
    assert client.answer() == []
    assert client.answer() == [f"calls/{client.run.id}-2"], "a forward has no effect to replay"
    client.answer()
    client.refuse("too long")
    assert [(call.seq, call.outcome) for call in client.tinker.claims.answered_since_anchor(client.claimed)[1]] == [
        (1, "answered"),
        (2, "answered"),
        (3, "answered"),
        (4, "failed"),
    ]
    assert client.tinker.claims.set_anchor(client.claimed, Anchor("d3", 3, True)) == [f"calls/{client.run.id}-1"]
    assert client.tinker.claims.set_anchor(client.claimed, Anchor("d2", 2, True)) == [], "an earlier one came late"
    assert [call.seq for call in client.tinker.claims.answered_since_anchor(client.claimed)[1]] == [4]
    client.submit("optim_step")
    client.tinker.claims.release(client.claimed)
    assert client.claim().anchor == Anchor("d3", 3, True)


def test_a_save_can_be_an_anchor(client):
    client.submit("forward_backward")
    client.claim()
    client.answer()
    client.submit("optim_step")
    client.answer()
    client.save(digest="d3", name="one")
    assert client.tinker.claims.answered_since_anchor(client.claimed)[1] == []
    client.submit("forward_backward")
    client.answer()
    client.save(digest="d5", name="two", is_anchor=False)
    client.tinker.claims.release(client.claimed)
    client.submit("optim_step")
    assert client.claim().anchor == Anchor("d3", 3, True)
    assert [call.seq for call in client.tinker.claims.answered_since_anchor(client.claimed)[1]] == [4, 5]


def test_a_repeated_answer_of_a_save_adds_no_second_version(store, client):
    client.submit("save_for_sampler", options={"name": "a"})
    client.claim()
    call, result = client.next(), CallResult(saved=SavedState("d1", 1, False, True))
    for _ in range(2):
        client.tinker.claims.answer(client.claimed, call, result)
    assert [row.step for row in store.versions.page(client.run.model_id, "team", 10)] == [1]
