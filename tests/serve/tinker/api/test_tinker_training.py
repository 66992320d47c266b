"""Ordered calls over HTTP: journalled once, refused with a reason, answered in order."""

import errno
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from waiting import wait_until

from tandem.cluster.calls.wire import messages
from tandem.cluster.calls.wire.messages import FLOAT32, INT64
from tandem.serve.keys import create_key

PROTOBUF = "application/x-protobuf"


def request(run, seq=1, loss="importance_sampling", tokens=(1, 2, 3), forward_only=False, **changes):
    """A message of forward_backward with one datum."""
    message = messages.ForwardBackwardRequest(model_id=run, seq_id=seq, loss_fn=loss, forward_only=forward_only)
    datum = message.data.add()
    datum.model_input.add().encoded_text.tokens = np.asarray(tokens, "<i4").tobytes()
    inputs = {"target_tokens": tokens, "logprobs": [-1.0] * len(tokens), "advantages": [1.0] * len(tokens)}
    if loss == "cross_entropy":
        inputs = {"target_tokens": tokens}
    for name, values in {**inputs, **changes}.items():
        tensor, is_ids = datum.loss_fn_inputs[name], name == "target_tokens"
        tensor.dtype = INT64 if is_ids else FLOAT32
        tensor.dense = np.asarray(values, "<i8" if is_ids else "<f4").tobytes()
        tensor.shape.append(len(values))
    return message


@pytest.fixture
def send(http):
    """Send a message to forward_backward. Return the request id, or the error."""

    def send(message, status=200, **headers):
        content = message if isinstance(message, bytes) else message.SerializeToString()
        response = http.post("/api/v1/forward_backward", content=content, headers={"Content-Type": PROTOBUF, **headers})
        assert response.status_code == status, response.text
        return response.json()["request_id"] if status == 200 else response.json()["error"]

    return send


@pytest.fixture
def retrieve(http):
    def retrieve(request_id, status=200, **body):
        headers = {"Accept": PROTOBUF}
        response = http.post("/api/v1/retrieve_future", json={"request_id": request_id, **body}, headers=headers)
        assert response.status_code == status, response.text
        if response.headers["content-type"] == PROTOBUF:
            return messages.ForwardBackwardOutput.FromString(response.content)
        return response.json()

    return retrieve


def test_calls_are_executed_in_order_and_answered(run, send, post, retrieve, executor):
    first = send(request(run, 1))
    step = post("optim_step", model_id=run, seq_id=2, adam_params={"learning_rate": 0.5})["request_id"]
    executor.start()
    output = retrieve(first)
    [record] = output.loss_fn_outputs
    assert np.frombuffer(record.fields["logprobs"].data, "<f4").tolist() == [-1.0] * 3
    assert output.metrics["loss:sum"] == 3
    assert retrieve(step) == {"metrics": {"lr": 0.5}}
    assert [item[1:3] for item in executor.executed] == [(1, "forward_backward"), (2, "optim_step")]
    defaults = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-12, "weight_decay": 0.0, "grad_clip_norm": 0.0}
    assert executor.executed[1][3] == {"learning_rate": 0.5, **defaults}


def test_calls_that_arrive_in_any_order_are_executed_in_theirs(run, send, retrieve, executor):
    ids = {seq: send(request(run, seq)) for seq in (3, 2, 1)}
    executor.start()
    for seq, request_id in ids.items():
        assert np.frombuffer(retrieve(request_id).loss_fn_outputs[0].fields["logprobs"].data, "<f4")[0] == -seq
    assert [item[1] for item in executor.executed] == [1, 2, 3]


def test_a_repeat_is_the_same_call_and_leaves_no_second_body(run, send, executor, retrieve, blobs):
    message = request(run)
    first = send(message)
    held = blobs()
    compressed = zstandard.ZstdCompressor().compress(message.SerializeToString())
    assert send(message) == send(compressed, **{"Content-Encoding": "zstd"}) == first
    assert blobs() == held
    executor.start()
    retrieve(first)
    assert send(message) == first
    assert len(executor.executed) == 1


def test_another_call_with_the_same_number_is_refused_without_409(run, send, post):
    send(request(run))
    assert send(request(run, tokens=(4, 5)), status=400)["code"] == "sequence_number_reused"
    assert post("optim_step", 400, model_id=run, seq_id=1)["error"]["code"] == "sequence_number_reused"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"loss": "stable_reinforce"}, "loss_fn"),
        ({"tokens": (1, 2, 512)}, "data[0].model_input"),
        ({"advantages": [1.0, float("nan"), 1.0]}, "data[0].loss_fn_inputs.advantages"),
        ({"advantages": [1.0]}, "data[0].loss_fn_inputs.advantages"),
        ({"tokens": (1,) * 257}, "data[0].model_input"),
        ({"surprise": [1.0, 2.0, 3.0]}, "data[0].loss_fn_inputs.surprise"),
    ],
)
def test_content_that_is_refused_takes_its_number(run, send, retrieve, executor, blobs, change, place):
    held = blobs()
    refused = retrieve(send(request(run, 1, **change)))
    assert refused["category"] == "user"
    assert place in refused["error"]
    assert blobs() == held
    executor.start()
    assert retrieve(send(request(run, 2))).metrics["loss:sum"] == 3


def test_options_that_are_refused_take_their_number(run, post, retrieve, executor, send):
    bad = post("optim_step", model_id=run, seq_id=1, adam_params={"learning_rate": -1})["request_id"]
    assert retrieve(bad)["category"] == "user"
    assert "learning_rate" in retrieve(bad)["error"]
    other = post("optim_step", model_id=run, seq_id=2, optimizer_params={"type": "dimuon", "learning_rate": 1})
    assert "AdamW" in retrieve(other["request_id"])["error"]
    executor.start()
    assert retrieve(send(request(run, 3))).metrics["loss:sum"] == 3


def test_bodies_without_model_and_number_are_refused_at_once(run, send, post):
    assert send(b"\xff\xff", status=422)["param"] == "body"
    assert send(request(run, 0), status=422)["param"] == "body.seq_id"
    assert send(request("nobody:train:0"), status=404)["code"] == "run_not_found"
    assert post("optim_step", 422, model_id=run)["error"]["param"] == "body.seq_id"
    assert post("optim_step", 422, model_id=run, seq_id=True)["error"]["param"] == "body.seq_id"
    broken = zstandard.ZstdCompressor().compress(request(run).SerializeToString() * 50)[:-5]
    assert send(broken, status=422, **{"Content-Encoding": "zstd"})["code"] == "broken_content_encoding"


def test_a_large_body_is_refused_also_when_it_is_compressed(run, send, configure):
    configure("tinker", max_call_bytes=1000)
    message = request(run, tokens=(1,) * 250)
    assert send(message, status=413)["code"] == "body_too_large"
    small = zstandard.ZstdCompressor().compress(message.SerializeToString())
    assert len(small) < 1000
    assert send(small, status=413, **{"Content-Encoding": "zstd"})["code"] == "body_too_large"


def test_a_full_journal_is_a_429_except_for_the_number_that_others_wait_for(run, send, configure, blobs):
    configure("tinker", max_waiting_calls=2)
    send(request(run, 2))
    send(request(run, 3))
    held = blobs()
    assert send(request(run, 4), status=429)["code"] == "queue_full"
    assert blobs() == held
    send(request(run, 1))


def test_a_request_for_a_result_is_held_and_says_what_the_call_waits_for(run, send, retrieve, configure):
    configure("tinker", hold_s=0.05)
    later = send(request(run, 2))
    answer = retrieve(later, 408)
    assert (answer["type"], answer["request_id"], answer["queue_state"]) == ("try_again", later, "active")
    assert "call 1" in answer["queue_state_reason"]
    assert retrieve(send(request(run, 1)), 408)["queue_state"] == "paused_capacity"


def test_a_result_expires(run, send, retrieve, executor, clock, services):
    request_id = send(request(run))
    executor.step()
    retrieve(request_id)
    clock.advance(services.config.tinker.result_s + 1)
    assert retrieve(request_id, 410)["error"]["code"] == "result_expired"


def test_a_large_result_is_announced_once(run, send, retrieve, executor, monkeypatch):
    monkeypatch.setattr("tandem.serve.tinker.api.outcome_answers.MAX_INLINE_BYTES", 10)
    request_id = send(request(run))
    executor.step()
    announced = retrieve(request_id, allow_metadata_only=True)
    assert announced["status"] == "complete_metadata" and announced["response_payload_size"] > 10
    assert retrieve(request_id).metrics["loss:sum"] == 3


def test_a_request_for_a_result_that_fails_is_no_5xx(run, retrieve, monkeypatch):
    monkeypatch.setattr("tandem.serve.tinker.api.errors.HOLD_S", 0.01)
    monkeypatch.setattr("tandem.serve.tinker.store.calls.Calls.poll", lambda *_: 1 / 0)
    assert retrieve(f"call/{run}/1", 408)["type"] == "try_again"


def test_forward_in_protobuf_and_in_the_json_of_older_clients(run, send, post, executor):
    executor.start()
    send(request(run, 1, "cross_entropy", forward_only=True))
    tensor = {"data": [2, 3], "dtype": "int64", "shape": [2]}
    datum = {"model_input": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]}}
    sent = {"data": [datum | {"loss_fn_inputs": {"target_tokens": tensor}}], "loss_fn": "cross_entropy"}
    forward = post("forward", model_id=run, seq_id=2, forward_input=sent)["request_id"]
    backward = post("forward_backward", model_id=run, seq_id=3, forward_backward_input=sent)["request_id"]
    answer = post("retrieve_future", request_id=backward)
    assert answer["loss_fn_outputs"] == [{"logprobs": {"data": [-3.0, -3.0], "dtype": "float32", "shape": [2]}}]
    assert post("retrieve_future", request_id=forward)["metrics"] == {"loss:sum": 2.0}
    assert [item[2] for item in executor.executed] == ["forward", "forward", "forward_backward"]
    sent["data"][0]["loss_fn_inputs"]["target_tokens"] = {"data": "x"}
    refused = post("forward", model_id=run, seq_id=4, forward_input=sent)["request_id"]
    assert post("retrieve_future", request_id=refused)["category"] == "user"


def test_what_other_entities_own_is_not_found(run, send, post, http, store):
    request_id = send(request(run))
    http.headers["Authorization"] = f"Bearer {create_key(store, 'k', 'others', 'admin')}"
    assert post("retrieve_future", 404, request_id=request_id)["error"]["code"] == "run_not_found"
    assert send(request(run, 2), status=404)["code"] == "run_not_found"
    assert post("optim_step", 404, model_id=run, seq_id=2)["error"]["code"] == "run_not_found"
    assert post("get_info", 404, model_id=run)["error"]["code"] == "run_not_found"
    assert post("unload_model", 404, model_id=run)["error"]["code"] == "run_not_found"


def test_custom_losses_on_the_service_are_refused_with_advice(post):
    assert "forward_backward_custom" in post("create_custom_loss", 422, session_id="x", graph={})["error"]["message"]


def test_a_call_of_an_unloaded_model_leaves_no_body(run, send, post, retrieve, blobs):
    post("unload_model", model_id=run)
    held = blobs()
    refused = retrieve(send(request(run)))
    assert refused["category"] == "user" and "unloaded" in refused["error"]
    assert blobs() == held


def test_a_model_whose_base_model_is_no_longer_served_says_so(
    run, session, send, post, retrieve, configure, app, blobs
):
    waiting, held = send(request(run)), blobs()
    configure("tinker", hold_s=0.01)
    app.state.services = replace(app.state.services, base_models={"another": None})
    assert "isn't served" in retrieve(waiting, 408)["queue_state_reason"]
    for refused in (send(request(run, 2)), post("optim_step", model_id=run, seq_id=3)["request_id"]):
        assert retrieve(refused)["category"] == "user" and "isn't served" in retrieve(refused)["error"]
    assert blobs() == held
    assert post("get_info", 404, model_id=run)["error"]["code"] == "base_model_not_found"
    sampler = {"session_id": session, "sampling_session_seq_id": 0, "base_model": "tandem/tiny"}
    assert post("create_sampling_session", 422, **sampler)["error"]["code"] == "base_model_not_found"
    post("unload_model", model_id=run)


def test_a_full_disk_refuses_a_call_and_leaves_its_number_free(run, send, configure, blobs, executor, retrieve):
    held, free = blobs(), 10**18
    configure("limits", min_free_disk_bytes=free)
    assert send(request(run), status=507)["code"] == "disk_full"
    assert blobs() == held
    configure("limits", min_free_disk_bytes=0)
    request_id = send(request(run))
    executor.step()
    assert retrieve(request_id).metrics["loss:sum"] == 3


def test_a_disk_that_fills_up_while_a_body_is_written_refuses_the_call(run, send, services, blobs, monkeypatch):
    def full(key, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    held = blobs()
    monkeypatch.setattr(services.artifacts, "write_blob", full)
    assert send(request(run), status=507)["code"] == "disk_full"
    assert blobs() == held


def test_a_waiting_request_learns_of_an_unloaded_model(run, send, post, retrieve):
    request_id, answers = send(request(run)), []
    thread = threading.Thread(target=lambda: answers.append(retrieve(request_id)))
    thread.start()
    time.sleep(0.1)
    unload = post("unload_model", model_id=run)["request_id"]
    wait_until(lambda: answers)
    thread.join()
    assert answers[0]["category"] == "user"
    assert retrieve(unload) == {"model_id": run, "type": "unload_model"}
