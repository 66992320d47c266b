"""Bodies that no client would send: each is read, or refused with a place; nothing else is raised."""

import math
import struct

import pytest
import zstandard
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tandem.cluster.calls.wire import messages
from tandem.cluster.calls.wire.forward_backward import MAX_CELLS, decompressed, read_forward_backward
from tandem.rl.datums.datum import DatumError, check_call
from tandem.rl.datums.losses import LOSSES

VOCABULARY, MAX_LENGTH, MAX_BYTES = 512, 64, 1 << 20
SIZES = st.sampled_from([0, 1, 2, 3, 8, -1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
NUMBERS = st.sampled_from([0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 1e-320])
IDS = st.sampled_from([0, 1, 511, 512, -1, 2**31 - 1, -(2**31)])


def quick(num_examples):
    """Return settings that generate the same bodies in every run."""
    return settings(
        max_examples=num_examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def request(num_datums=2, num_tokens=3):
    """Return a request that is right in every way."""
    sent = messages.ForwardBackwardRequest(model_id="s:train:0", seq_id=1, loss_fn="ppo")
    sent.loss_fn_config["clip_low_threshold"] = 0.8
    for _ in range(num_datums):
        datum = sent.data.add()
        datum.model_input.add().encoded_text.tokens = struct.pack(f"<{num_tokens}i", *range(num_tokens))
        fill(datum.loss_fn_inputs["target_tokens"], "q", messages.INT64, range(num_tokens))
        for name in ("logprobs", "advantages"):
            fill(datum.loss_fn_inputs[name], "f", messages.FLOAT32, [0.5] * num_tokens)
    return sent


def fill(tensor, code, dtype, values):
    tensor.dense, tensor.dtype = struct.pack(f"<{len(values)}{code}", *values), dtype
    tensor.shape.append(len(values))


def outcome(body):
    """Return the call of a body, or the error that names a place. Anything else fails the test."""
    try:
        read = read_forward_backward(body)
        check_call(read.call, VOCABULARY, MAX_LENGTH)
    except DatumError as error:
        assert error.place and error.reason
        assert len(str(error)) < 1000
        return error
    return read


def test_what_is_right_is_read():
    read = outcome(request().SerializeToString())
    assert len(read.call.datums) == 2 and read.call.loss == "ppo"


@quick(300)
@given(st.data())
def test_damaged_bodies(data):
    body = bytearray(request().SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        match data.draw(st.sampled_from(["byte", "cut", "insert", "remove", "repeat"])):
            case "byte":
                body[at] = data.draw(st.integers(0, 255))
            case "cut":
                del body[max(at, 1) :]
            case "insert":
                body[at:at] = data.draw(st.binary(max_size=9))
            case "remove":
                del body[at : at + data.draw(st.integers(1, max(1, min(20, len(body) - 1))))]
                body = body or bytearray(b"\0")
            case "repeat":
                body += body[at:]
    outcome(bytes(body))


@st.composite
def tensors(draw):
    """A tensor whose dtype, shape and bytes may not fit each other."""
    tensor = messages.ForwardBackwardRequest().data.add().loss_fn_inputs["x"]
    tensor.dtype = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 99]))
    tensor.shape.extend(draw(st.lists(SIZES, max_size=3)))
    packed = st.one_of(
        st.lists(NUMBERS, max_size=4).map(lambda numbers: struct.pack(f"<{len(numbers)}d", *numbers)),
        st.lists(IDS, max_size=4).map(lambda ids: struct.pack(f"<{len(ids)}q", *ids)),
        st.binary(max_size=24),
    )
    match draw(st.sampled_from(["dense", "sparse", "neither"])):
        case "dense":
            tensor.dense = draw(packed)
        case "sparse":
            tensor.sparse_csr.values = draw(packed)
            rows = st.lists(SIZES, max_size=4).map(lambda sizes: struct.pack(f"<{len(sizes)}q", *sizes))
            tensor.sparse_csr.crow_indices = draw(st.one_of(rows, packed))
            tensor.sparse_csr.col_indices = draw(packed)
    return tensor


@quick(300)
@given(tensors(), st.sampled_from(["target_tokens", "logprobs", "advantages", "weights", "x" * 200]))
def test_tensors_that_contradict_themselves(tensor, name):
    sent = request()
    sent.data[1].loss_fn_inputs[name].CopyFrom(tensor)
    outcome(sent.SerializeToString())


@quick(100)
@given(
    st.sampled_from([*LOSSES, "", "stable_reinforce", "custom", "é" * 10**5]),
    st.dictionaries(st.sampled_from(["clip_low_threshold", "beta", "", "x" * 10**5]), NUMBERS),
    st.dictionaries(st.sampled_from(["clip_high_threshold", "y" * 10**5]), st.one_of(NUMBERS, st.just("a" * 10**5))),
    st.sampled_from([-(2**31), -1, 0, 1, 2**31 - 1]),
    st.sampled_from(["", "nobody:train:1", "\0", "m" * 10**5]),
)
def test_losses_options_and_numbers(loss, options, newer_options, seq_id, model_id):
    sent = request()
    sent.loss_fn, sent.seq_id, sent.model_id = loss, seq_id, model_id
    sent.loss_fn_config.update(options)
    for name, value in newer_options.items():
        setattr(sent.loss_fn_config_v2[name], "text" if isinstance(value, str) else "number", value)
    outcome(sent.SerializeToString())


@pytest.mark.parametrize("shape", [[0, 2**62], [2**62, 0, 2**62], [2**63 - 1] * 20, [1] * 70, [2**32, 2**32], [-1]])
def test_shapes_beyond_all_numbers(shape):
    sent = request()
    sent.data[1].loss_fn_inputs["advantages"].shape[:] = shape
    assert outcome(sent.SerializeToString()).place == ("data", 1, "loss_fn_inputs", "advantages")


def test_many_sparse_tensors_ask_for_no_more_than_one():
    sent = messages.ForwardBackwardRequest(model_id="s:train:0", seq_id=1, loss_fn="cross_entropy")
    for _ in range(64):
        datum = sent.data.add()
        datum.model_input.add().encoded_text.tokens = bytes(4)
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.dtype, tensor.shape[:] = messages.INT64, [1, MAX_CELLS // 4]
        tensor.sparse_csr.crow_indices = struct.pack("<2q", 0, 0)
    assert outcome(sent.SerializeToString()).place == ("data", 4)


FRAME = zstandard.compress(request(num_datums=64).SerializeToString())


def test_a_whole_frame_is_decompressed():
    assert len(read_forward_backward(decompressed(FRAME, MAX_BYTES)).call.datums) == 64


@pytest.mark.parametrize(
    ("body", "words"),
    {
        "empty": (b"", "without its end"),
        "no frame": (b"\x0a\x03abc", "isn't a zstd frame"),
        "cut in its head": (FRAME[:3], "without its end"),
        "cut": (FRAME[: len(FRAME) // 2], "without its end"),
        "cut by one byte": (FRAME[:-1], "without its end"),
        "another frame behind": (FRAME + FRAME, "one frame"),
        "bytes behind": (FRAME + b"\0", "one frame"),
        "a bomb": (zstandard.compress(bytes(1 << 28)), "more than 1048576 bytes"),
        "a bomb in a bomb": (zstandard.compress(zstandard.compress(bytes(1 << 28)) * 500), "more than 1048576 bytes"),
    }.values(),
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_broken_frames(body, words):
    with pytest.raises(DatumError, match=words) as raised:
        decompressed(body, MAX_BYTES)
    assert raised.value.place == ("body",)


@quick(200)
@given(st.data())
def test_damaged_frames(data):
    body = bytearray(FRAME)
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        outcome(decompressed(bytes(body), MAX_BYTES))
    except DatumError as error:
        assert error.place == ("body",)
