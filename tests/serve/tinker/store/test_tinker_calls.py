"""The journal of calls: each number once, order, gaps, and results."""

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from tandem.serve.errors import BadRequestError, GoneError, NotFoundError, QueueFullError
from tandem.serve.store.store import Store
from tandem.serve.tinker.store.outcomes import Answered, Failed, Waiting
from tandem.serve.tinker.store.store import TinkerStore

BASE = "tandem/tiny"
BOTH = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)


@BOTH
def test_a_repeat_has_the_request_id_of_the_first_call(client):
    first = client.submit("forward_backward", body="one")
    assert client.submit("forward_backward", 1, body="one") == first
    with pytest.raises(BadRequestError) as refused:
        client.submit("forward_backward", 1, body="two")
    assert refused.value.code == "sequence_number_reused"
    with pytest.raises(BadRequestError):
        client.submit("forward", 1, body="one")
    with pytest.raises(BadRequestError):
        client.submit("optim_step", 0)


@BOTH
@pytest.mark.parametrize("seed", range(3))
def test_calls_sent_many_times_at_once_by_several_processes_are_recorded_once(store_url, clock, client, run, seed):
    stores = [Store(store_url, clock) for _ in range(2)]
    clients = [TinkerStore(store.database) for store in stores]
    sends = [(seq, body) for seq in range(1, 9) for body in ("a", "a", "b")]
    random.Random(seed).shuffle(sends)
    barrier = Barrier(len(sends))

    def send(index, seq, body):
        barrier.wait()
        try:
            sha = body * 64
            return (
                seq,
                body,
                clients[index % 2].calls.submit(
                    "team", run.id, seq, "forward_backward", sha, f"calls/{seq}-{body}", {}, 1
                ),
            )
        except BadRequestError as error:
            return seq, body, error.code

    with ThreadPoolExecutor(len(sends)) as pool:
        results = list(pool.map(lambda item: send(item[0], *item[1]), enumerate(sends)))
    client.claim()
    calls = client.tinker.claims.next_calls(client.claimed)
    assert [call.seq for call in calls] == list(range(1, 9))
    for call in calls:
        winner = call.body_key[-1]
        for seq, body, result in results:
            if seq == call.seq:
                expected = f"call/{run.id}/{seq}" if body == winner else "sequence_number_reused"
                assert result == expected
    for store in stores:
        store.close()


@BOTH
def test_calls_run_in_order_however_they_arrive(client):
    for seq in (3, 1, 4):
        client.submit("forward_backward", seq)
    client.claim()
    assert [call.seq for call in client.tinker.claims.next_calls(client.claimed)] == [1]
    client.answer()
    assert client.tinker.claims.next_calls(client.claimed) == []
    client.submit("optim_step", 2)
    assert [call.seq for call in client.tinker.claims.next_calls(client.claimed)] == [2, 3, 4]


@BOTH
def test_a_run_that_waits_for_a_missing_call_is_not_claimed(client, clock):
    client.submit("forward_backward", 2)
    assert client.claim() is None
    assert client.tinker.claims.ready_runs(BASE) == []
    client.tinker.calls.submit_refused("team", client.run.id, 1, "forward_backward", "x", "the datum is too long")
    assert client.tinker.claims.ready_runs(BASE) == [client.run.id]
    assert client.claim().id == client.run.id
    assert [(call.seq, call.outcome) for call in client.tinker.claims.next_calls(client.claimed)] == [
        (1, "failed"),
        (2, None),
    ]
    client.answer()
    assert client.tinker.claims.next_calls(client.claimed) == []
    assert [call.seq for call in client.tinker.claims.answered_since_anchor(client.claimed)[1]] == [1, 2]


@BOTH
def test_a_call_that_does_not_arrive_fails_those_behind_it_and_the_run_continues(client, clock):
    requests = {seq: client.submit("forward_backward", seq) for seq in (1, 3, 4)}
    clock.advance(50)
    requests[7] = client.submit("optim_step", 7)
    assert client.tinker.claims.fail_gaps(BASE) == 0
    clock.advance(10)
    assert client.tinker.claims.fail_gaps(BASE) == 1
    assert client.tinker.claims.fail_gaps(BASE) == 0
    for seq in (3, 4, 7):
        failed = client.tinker.calls.outcome(requests[seq], "team")
        assert (type(failed), failed.category) == (Failed, "server")
        assert "2, 5, 6" in failed.message
    late = client.tinker.calls.outcome(client.submit("forward_backward", 2), "team")
    assert (type(late), late.category) == (Failed, "server")
    client.claim()
    client.answer()
    client.submit("optim_step", 8)
    found = [(call.seq, call.kind, call.outcome) for call in client.tinker.claims.next_calls(client.claimed)]
    assert found == [
        (2, "missing", "failed"),
        (3, "forward_backward", "failed"),
        (4, "forward_backward", "failed"),
        (5, "missing", "failed"),
        (6, "missing", "failed"),
        (7, "optim_step", "failed"),
        (8, "optim_step", None),
    ]
    client.answer()
    assert client.tinker.claims.next_calls(client.claimed) == []


@BOTH
def test_numbers_far_beyond_the_others_are_refused(client):
    client.submit("forward_backward", 1)
    with pytest.raises(BadRequestError) as refused:
        client.submit("forward_backward", 2**31 - 1)
    assert refused.value.code == "sequence_number_too_high"


def test_few_calls_cannot_ask_for_any_number_of_missing_ones(client, monkeypatch):
    """Each missing number becomes a row once it is given up."""
    monkeypatch.setattr("tandem.serve.tinker.store.calls.MAX_MISSING", 3)
    refuse = client.tinker.calls.submit_refused
    for seq in range(1, 9):
        refuse("team", client.run.id, seq, "optim_step", "x" * 64, "no")  # they have arrived, and none has its turn
    client.submit("forward_backward", 12)
    with pytest.raises(BadRequestError, match="4 calls of"):
        client.submit("forward_backward", 14)
    client.submit("forward_backward", 13)
    client.submit("forward_backward", 9)
    client.submit("forward_backward", 15)


@BOTH
def test_too_many_waiting_calls_are_refused_but_never_the_one_that_others_wait_for(client):
    for seq in range(2, 10):
        client.submit("forward_backward", seq)
    with pytest.raises(QueueFullError):
        client.submit("forward_backward", 10)
    client.submit("forward_backward", 1)
    client.claim()
    client.answer()
    client.answer()
    client.submit("forward_backward", 10)


@BOTH
def test_results_are_kept_for_a_time(client, clock):
    request = client.submit("forward_backward")
    assert isinstance(client.tinker.calls.outcome(request, "team"), Waiting)
    assert client.tinker.calls.poll(request, "team") is None
    client.claim()
    client.answer(b"result")
    assert client.tinker.calls.poll(request, "team") == Answered(b"result", "application/json")
    clock.advance(3601)
    with pytest.raises(GoneError):
        client.tinker.calls.outcome(request, "team")
    assert client.submit("forward_backward", 1) == request, "its number stays taken"


@BOTH
@pytest.mark.parametrize("request_id", ["call/x/1", "nonsense", "call/{run}/7", "unload/{run}", "call/{run}/x"])
def test_what_was_never_asked_for_has_no_result(client, request_id):
    client.submit("forward_backward")
    with pytest.raises(NotFoundError):
        client.tinker.calls.outcome(request_id.format(run=client.run.id), "team")
    with pytest.raises(NotFoundError):
        client.tinker.calls.outcome(f"call/{client.run.id}/1", "others")


@BOTH
def test_a_call_of_an_unloaded_run_fails(client):
    waiting = client.submit("forward_backward")
    assert client.tinker.runs.unload("team", client.run.id) == [f"calls/{client.run.id}-1"]
    assert client.tinker.runs.unload("team", client.run.id) == []
    for request in (waiting, client.submit("optim_step")):
        failed = client.tinker.calls.outcome(request, "team")
        assert (type(failed), failed.category) == (Failed, "user")
    assert client.claim() is None
    assert b"unload_model" in client.tinker.calls.outcome(f"unload/{client.run.id}", "team").content


@BOTH
def test_a_waiting_call_says_why(store, client, new_client, add_model, add_job, claim):
    requests = [client.submit("forward_backward") for _ in range(3)]
    gap = client.submit("optim_step", 6)

    def reason(request):
        found = client.tinker.calls.outcome(request, "team")
        return found.state, found.reason

    assert "call 4" in reason(gap)[1]
    assert reason(requests[0])[0] == "paused_capacity"
    assert "2 calls of this model" in reason(requests[2])[1]
    client.claim()
    assert reason(requests[0])[0] == "active"
    assert "1 call of this model" in reason(requests[1])[1]
    client.tinker.claims.report_waiting(client.claimed, "GPUs for the learners")
    assert reason(requests[0]) == ("paused_capacity", "The call waits for GPUs for the learners.")
    client.tinker.claims.report_waiting(client.claimed, None)
    client.tinker.claims.release(client.claimed)
    add_job(add_model())
    claim()
    assert "a training job of team/project/agent" in reason(requests[0])[1]
    add_job(add_model(entity="others"))
    claim()
    found = reason(requests[1])[1]
    assert "2 training jobs" in found and "others/" not in found
