"""Bodies of forward_backward as the client writes and reads them, and broken ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from tinker import types
from tinker.proto import tinker_public_pb2
from tinker.proto.request_conv import forward_backward_request_to_proto
from tinker.proto.response_conv import deserialize_forward_backward_output
from tinker.types.forward_backward_input import ForwardBackwardInput
from tinker.types.forward_backward_request import ForwardBackwardRequest
from torch import Tensor

from tandem.cluster.calls.wire import messages
from tandem.cluster.calls.wire.forward_backward import (
    body_content,
    decompressed,
    forward_backward_output,
    read_forward_backward,
)
from tandem.rl.datums.datum import DatumError

IDS = [5, 6, 7]
MAX_BYTES = 1 << 20
NOT_READ = {"override_dimensions"}
"""Fields of the client's messages that aren't needed: of images, which are refused."""


def client_datum(inputs: dict[str, Any], ids: list[int] = IDS) -> types.Datum:
    return types.Datum(model_input=types.ModelInput.from_ints(ids), loss_fn_inputs=inputs)


def client_body(data: list[types.Datum], loss: str = "cross_entropy", config: dict[str, Any] | None = None) -> bytes:
    """Return what the client itself writes."""
    sent = ForwardBackwardRequest(ForwardBackwardInput(data, loss, config), model_id="s:train:0", seq_id=4)  # type: ignore[arg-type]
    return forward_backward_request_to_proto(sent).SerializeToString()


def dense(values: Tensor) -> types.TensorData:
    return types.TensorData.from_torch(values)


# Messages


@pytest.mark.parametrize("name", ["ForwardBackwardRequest", "ForwardBackwardOutput", "SampleResponse"])
def test_field_numbers_are_those_of_the_client(name: str) -> None:
    theirs = tinker_public_pb2.DESCRIPTOR.message_types_by_name[name]
    assert _differences(getattr(messages, name).DESCRIPTOR, theirs, set()) == []


def _differences(ours: Descriptor, theirs: Descriptor, seen: set[str]) -> list[str]:
    if theirs.full_name in seen:
        return []
    seen.add(theirs.full_name)
    found = [f"{theirs.name}.{name} is missing" for name in {*theirs.fields_by_name} - {*ours.fields_by_name}]
    found = [text for text in found if text.split(".")[1].split()[0] not in NOT_READ]
    for name, field in ours.fields_by_name.items():
        other = theirs.fields_by_name.get(name)
        if other is None or _kind(field) != _kind(other):
            found.append(f"{theirs.name}.{name}: {_kind(field)}, the client has {other and _kind(other)}")
        elif field.message_type is not None:
            found += _differences(field.message_type, other.message_type, seen)
        elif field.enum_type is not None:
            numbers = {value.name: value.number for value in field.enum_type.values}
            if numbers != {value.name: value.number for value in other.enum_type.values}:
                found.append(f"{theirs.name}.{name} has other values")
    return found


def _kind(field: FieldDescriptor) -> tuple[object, ...]:
    """Return number, type, whether it is repeated, whether its absence shows, and the fields of which one is set."""
    group = field.containing_oneof
    together = sorted(other.name for other in group.fields) if group is not None else []
    return field.number, field.type, field.is_repeated, field.has_presence, together


# Requests


def test_a_call_is_read_as_the_client_writes_it() -> None:
    targets, weights = torch.tensor([6, 7, 8]), torch.tensor([0.0, -0.25, 3e-8])
    first = client_datum({"target_tokens": dense(targets), "weights": dense(weights)})
    second = client_datum({"target_tokens": dense(torch.tensor([2]))}, [1])
    found = read_forward_backward(client_body([first, second]))
    assert (found.model_id, found.seq_id, found.forward_only) == ("s:train:0", 4, False)
    assert (found.call.loss, found.call.options) == ("cross_entropy", {})
    one, two = found.call.datums
    assert one.token_ids.tolist() == IDS
    assert one.token_ids.dtype == one.targets.dtype == torch.int64
    assert torch.equal(one.targets, targets)
    assert torch.equal(one.values["weights"], weights)
    assert (two.token_ids.tolist(), two.targets.tolist(), two.values) == ([1], [2], {})


def test_chunks_of_tokens_are_joined() -> None:
    chunks = [types.EncodedTextChunk(tokens=own) for own in ([5], [], [6, 7])]
    datum = types.Datum(
        model_input=types.ModelInput(chunks=chunks), loss_fn_inputs={"target_tokens": dense(torch.tensor([6, 7, 8]))}
    )
    assert read_forward_backward(client_body([datum])).call.datums[0].token_ids.tolist() == IDS


def test_options_and_forward_only() -> None:
    message = tinker_public_pb2.ForwardBackwardRequest.FromString(
        client_body([], "ppo", {"clip_low_threshold": 0.1, "clip_high_threshold": 7})
    )
    message.forward_only = True
    message.loss_fn_config["clip_high_threshold"] = 99.0  # of servers that don't know the newer field
    found = read_forward_backward(message.SerializeToString())
    assert found.forward_only
    assert found.call.options == {"clip_low_threshold": 0.1, "clip_high_threshold": 7.0}


@pytest.mark.parametrize("num_targets", [1, 4])
def test_several_targets_dense_and_sparse(num_targets: int) -> None:
    targets = torch.arange(3 * num_targets).view(3, num_targets)
    weights = torch.zeros(3, num_targets)
    weights[2, num_targets - 1] = 0.5
    sparse = types.TensorData.from_torch_sparse(weights)
    assert num_targets == 1 or sparse.sparse_crow_indices == [0, 0, 0, 1]
    for sent in (sparse, dense(weights)):
        [datum] = read_forward_backward(
            client_body([client_datum({"target_tokens": dense(targets), "weights": sent})])
        ).call.datums
        assert torch.equal(datum.targets, targets)
        assert torch.equal(datum.values["weights"], weights)


@pytest.mark.parametrize(
    ("dtype", "sent", "expected"),
    [
        (messages.FLOAT32, np.array([1.5, -2.0, 0.1], "<f4"), torch.tensor([1.5, -2.0, 0.1])),
        (messages.INT64, np.array([1, 0, 2], "<i8"), torch.tensor([1.0, 0.0, 2.0])),
        (messages.INT32, np.array([1, 0, -2], "<i4"), torch.tensor([1.0, 0.0, -2.0])),
        (
            messages.BFLOAT16,
            torch.tensor([1.5, -2.0, 0.1]).bfloat16().view(torch.int16).numpy(),
            torch.tensor([1.5, -2.0, 0.1]).bfloat16().float(),
        ),
    ],
)
def test_numbers_of_every_dtype(dtype: int, sent: np.ndarray, expected: Tensor) -> None:
    def add(request: Any) -> None:
        weights = request.data[0].loss_fn_inputs["weights"]
        weights.dense, weights.dtype = sent.tobytes(), dtype
        weights.shape.append(3)

    found = read_forward_backward(changed(add)).call.datums[0].values["weights"]
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_targets_may_be_int32() -> None:
    def narrow(request: Any) -> None:
        targets = request.data[0].loss_fn_inputs["target_tokens"]
        targets.dense, targets.dtype = np.array([1, 2, 3], "<i4").tobytes(), messages.INT32

    found = read_forward_backward(changed(narrow)).call.datums[0].targets
    assert (found.dtype, found.tolist()) == (torch.int64, [1, 2, 3])


def test_a_list_without_a_shape_is_read() -> None:
    tensor = types.TensorData(data=[6, 7, 8], dtype="int64")
    assert read_forward_backward(client_body([client_datum({"target_tokens": tensor})])).call.datums[
        0
    ].targets.shape == (3,)


def test_a_compressed_body() -> None:
    body = client_body([client_datum({"target_tokens": dense(torch.tensor([6, 7, 8]))})] * 50)
    frame = zstandard.ZstdCompressor().compress(body)
    assert decompressed(frame, MAX_BYTES) == body_content(frame, MAX_BYTES) == body_content(body, MAX_BYTES) == body


# Broken requests


def changed(change: Callable[[Any], object]) -> bytes:
    """Return a body that `change` has broken, in the client's own message."""
    datum = client_datum({"target_tokens": dense(torch.tensor([6, 7, 8]))})
    message = tinker_public_pb2.ForwardBackwardRequest.FromString(client_body([datum, datum]))
    change(message)
    return message.SerializeToString()


def inputs(request: Any, name: str = "weights") -> Any:
    return request.data[1].loss_fn_inputs[name]


def sparse(request: Any, shape: list[int], values: int, rows: list[int], columns: list[int]) -> None:
    tensor = inputs(request)
    tensor.dtype = messages.FLOAT32
    tensor.shape.extend(shape)
    tensor.sparse_csr.values = np.ones(values, "<f4").tobytes()
    tensor.sparse_csr.crow_indices = np.array(rows, "<i8").tobytes()
    tensor.sparse_csr.col_indices = np.array(columns, "<i8").tobytes()


WEIGHTS = ("data", 1, "loss_fn_inputs", "weights")
TARGETS = ("data", 1, "loss_fn_inputs", "target_tokens")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda request: setattr(request, "seq_id", 0), ("seq_id",)),
        (lambda request: setattr(request.loss_fn_config_v2["beta"], "text", "much"), ("loss_fn_config", "beta")),
        (lambda request: request.data[1].loss_fn_inputs.pop("target_tokens"), TARGETS),
        (lambda request: setattr(inputs(request, "target_tokens"), "dtype", messages.FLOAT32), TARGETS),
        (lambda request: setattr(inputs(request, "target_tokens"), "dtype", 9), TARGETS),
        (lambda request: setattr(inputs(request, "target_tokens"), "dense", b"\x00" * 23), TARGETS),
        (lambda request: setattr(inputs(request, "target_tokens"), "dense", b"\x00" * 16), TARGETS),
        (lambda request: inputs(request, "target_tokens").shape.append(2), TARGETS),
        (lambda request: inputs(request, "target_tokens").shape.append(-1), TARGETS),
        (lambda request: inputs(request, "target_tokens").shape.extend([2**40, 2**40]), TARGETS),
        (lambda request: sparse(request, [3], 1, [0, 1, 1, 1], [0]), WEIGHTS),
        (lambda request: sparse(request, [2**20, 2**20], 1, [0, 1], [0]), WEIGHTS),
        (lambda request: sparse(request, [3, 4], 1, [0, 1, 1], [0]), (*WEIGHTS, "crow_indices")),
        (lambda request: sparse(request, [3, 4], 1, [0, 2, 1, 1], [0]), (*WEIGHTS, "crow_indices")),
        (lambda request: sparse(request, [3, 4], 2, [0, 1, 1, 1], [0]), (*WEIGHTS, "crow_indices")),
        (lambda request: sparse(request, [3, 4], 1, [0, 1, 1, 1], [4]), (*WEIGHTS, "col_indices")),
        (lambda request: sparse(request, [3, 4], 1, [0, 1, 1, 1], [-1]), (*WEIGHTS, "col_indices")),
        (lambda request: sparse(request, [3, 4], 3, [0, 0, 3, 3], [2, 1, 2]), (*WEIGHTS, "col_indices")),
        (
            lambda request: setattr(request.data[1].model_input[0].encoded_text, "tokens", b"\x00" * 5),
            ("data", 1, "model_input", "chunks", 0, "tokens"),
        ),
        (
            lambda request: setattr(request.data[1].model_input.add().image, "data", b"x"),
            ("data", 1, "model_input", "chunks", 1),
        ),
        (lambda request: request.data[1].model_input.add(), ("data", 1, "model_input", "chunks", 1)),
    ],
)
def test_a_fault_names_its_place(change: Callable[[Any], object], place: tuple[str | int, ...]) -> None:
    with pytest.raises(DatumError) as caught:
        read_forward_backward(changed(change))
    assert caught.value.place == place


def test_broken_bodies() -> None:
    whole = changed(lambda request: None)
    frame = zstandard.ZstdCompressor().compress(whole)
    with pytest.raises(DatumError, match="body: isn't a ForwardBackwardRequest"):
        read_forward_backward(whole[:-3])
    for broken in (frame[:-3], whole, b"", frame + b"x"):
        with pytest.raises(DatumError) as caught:
            decompressed(broken, MAX_BYTES)
        assert caught.value.place == ("body",)
    with pytest.raises(DatumError, match="more than 10000 bytes"):
        decompressed(zstandard.ZstdCompressor().compress(bytes(10001)), 10000)


# Answers


def test_the_client_reads_the_answer() -> None:
    """Datums of one target, then of 3, then of 2, then of one again; one of them has no token."""
    logprobs = [torch.randn(4), torch.randn(0), torch.randn(2, 3), torch.randn(5, 2), torch.randn(1, 2), torch.randn(2)]
    body = forward_backward_output(logprobs, {"loss:sum": 1.25, "ratio:mean": math.inf})
    found = deserialize_forward_backward_output(body)
    assert found.metrics == {"loss:sum": 1.25, "ratio:mean": math.inf}
    assert len(found.loss_fn_outputs) == len(logprobs)
    for output, own in zip(found.loss_fn_outputs, logprobs, strict=True):
        assert output.keys() == {"logprobs"}
        assert output["logprobs"].dtype == "float32"
        assert output["logprobs"].shape == list(own.shape)
        assert output["logprobs"].data == own.flatten().tolist()


def test_an_answer_without_datums() -> None:
    assert deserialize_forward_backward_output(forward_backward_output([], {})).loss_fn_outputs == []
