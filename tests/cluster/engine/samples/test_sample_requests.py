"""Bodies of requests for samples, as the SDK writes them, against the limits of an engine."""

import json

import numpy as np
import pytest
import torch
from tinker import types
from tinker._compat import model_dump
from tinker.types._pydantic_types.tensor_data import TensorData
from tinker.types.sample_request import SampleRequest as SdkRequest

from tandem.cluster.engine.samples.sample_body import SampleError, read_body
from tandem.cluster.engine.samples.sample_request import EngineLimits, SampleRequest

LIMITS = EngineLimits(context=16, vocab_size=100, max_logprobs=20, max_samples=64)


def sdk_body(prompt=(1, 2, 3), params=None, **fields):
    """The bytes that the SDK sends."""
    request = SdkRequest(
        sampling_session_id="s:sample:1",
        seq_id=7,
        prompt=types.ModelInput.from_ints(list(prompt)),
        sampling_params=types.SamplingParams(**(params or {})),
        **fields,
    )
    return json.dumps(model_dump(request, exclude_unset=False, exclude_none=True, mode="json")).encode()


def read(content):
    return SampleRequest.of(read_body(content), LIMITS)


def test_the_sdks_defaults_are_read():
    body = read_body(sdk_body())
    assert (body.sampling_session_id, body.seq_id) == ("s:sample:1", 7)
    request = read(sdk_body())
    assert request.prompt == [1, 2, 3] and request.num_samples == 1
    assert (request.temperature, request.top_k, request.top_p, request.seed) == (1.0, 0, 1.0, None)
    assert request.max_tokens is None and not request.prompt_logprobs and not request.ignores_eos


def test_all_options_are_read():
    params = {"max_tokens": 5, "seed": 3, "temperature": 0.5, "top_k": 8, "top_p": 0.9, "stop": ["a", "b"]}
    request = read(
        sdk_body(
            params=params,
            num_samples=4,
            prompt_logprobs=True,
            topk_prompt_logprobs=2,
            topk_sample_logprobs=3,
            prompt_alt_tokens_k=4,
            prompt_logprobs_last_n=2,
        )
    )
    assert (request.max_tokens, request.seed, request.temperature) == (5, 3, 0.5)
    assert (request.top_k, request.top_p, request.stop_texts) == (8, 0.9, ["a", "b"])
    assert (request.num_samples, request.topk_prompt, request.topk_sample) == (4, 2, 3)
    assert (request.num_alternatives, request.last_n, request.prompt_logprobs) == (4, 2, True)


@pytest.mark.parametrize(
    ("stop", "texts", "ids", "ignores"),
    [
        ("x", ["x"], [], False),
        (["x"], ["x"], [], False),
        ([5, 6], [], [5, 6], False),
        (None, [], [], False),
        ([], [], [], True),
    ],
)
def test_stops_have_four_forms(stop, texts, ids, ignores):
    request = read(sdk_body(params={"stop": stop}))
    assert (request.stop_texts, request.stop_ids, request.ignores_eos) == (texts, ids, ignores)


def test_chunks_are_joined():
    content = json.loads(sdk_body())
    content["prompt"]["chunks"] = [{"type": "encoded_text", "tokens": [1]}, {"type": "encoded_text", "tokens": [2, 3]}]
    assert read(json.dumps(content).encode()).prompt == [1, 2, 3]


def changed(**fields):
    return json.dumps({**json.loads(sdk_body()), **fields}).encode()


def with_targets(data, dtype, shape):
    return changed(target_prompt_logprobs={"data": data, "dtype": dtype, "shape": shape})


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (changed(unknown=1), "unknown"),
        (changed(seq_id=-1), "seq_id"),
        (changed(seq_id=1 << 63), "seq_id"),
        (changed(num_samples=0), "num_samples"),
        (changed(num_samples=65), "num_samples"),
        (changed(num_samples=True), "num_samples"),
        (changed(prompt={"chunks": []}), "prompt"),
        (changed(prompt={"chunks": [{"type": "encoded_text", "tokens": [100]}]}), "prompt"),
        (changed(prompt={"chunks": [{"type": "encoded_text", "tokens": [-1]}]}), "prompt"),
        (changed(prompt={"chunks": [{"type": "encoded_text", "tokens": [1 << 70]}]}), "prompt"),
        (changed(prompt={"chunks": [{"type": "encoded_text", "tokens": [0.5]}]}), "prompt.chunks.0.tokens.0"),
        (changed(prompt={"chunks": [{"type": "image", "data": "", "format": "png"}]}), "image"),
        (sdk_body(prompt=[1] * 16), "prompt"),
        (sdk_body(params={"max_tokens": 0}), "max_tokens"),
        (sdk_body(params={"temperature": 0.001}), "temperature"),
        (sdk_body(params={"temperature": 2.5}), "temperature"),
        (sdk_body(params={"top_p": 0.0}), "top_p"),
        (sdk_body(params={"top_k": -2}), "top_k"),
        (sdk_body(params={"seed": -1}), "seed"),
        (sdk_body(params={"stop": ""}), "stop"),
        (sdk_body(params={"stop": [100]}), "stop"),
        (changed(sampling_params={"temperature": float("nan")}), "temperature"),
        (changed(sampling_params={"min_p": 0.1}), "min_p"),
        (sdk_body(topk_prompt_logprobs=21), "topk_prompt_logprobs"),
        (sdk_body(topk_sample_logprobs=-1), "topk_sample_logprobs"),
        (sdk_body(topk_prompt_logprobs=15, prompt_alt_tokens_k=15), "prompt_alt_tokens_k"),
        (sdk_body(prompt_logprobs_last_n=1), "prompt_logprobs"),
        (sdk_body(prompt_logprobs=True, prompt_logprobs_last_n=3), "prompt_logprobs_last_n"),
        (sdk_body(record_stability_info=True), "record_stability_info"),
        (sdk_body(base_model="m"), "base_model"),
        (sdk_body(model_path="tinker://x"), "model_path"),
        (with_targets([1, 2, 3], "int64", [3, 1]), "target_prompt_logprobs"),
        (with_targets([1.0, 2.0], "float32", [2, 1]), "target_prompt_logprobs"),
        (with_targets([1, 100], "int64", [2, 1]), "target_prompt_logprobs"),
        (with_targets([-1, -1], "int64", [2, 1]), "target_prompt_logprobs"),
        (with_targets([1, 2], "int64", [2, 1 << 62]), "target_prompt_logprobs"),
    ],
)  # fmt: skip
def test_what_cant_be_sampled_is_refused_by_name(content, named):
    with pytest.raises(SampleError, match=named):
        read(content)


def test_sparse_targets_keep_their_layout():
    dense = torch.full((8, 40), -1)
    dense[1, 3], dense[1, 39], dense[7, 0] = 7, 8, 9
    tensor = TensorData.from_torch_sparse(dense, pad_value=-1)
    assert tensor.sparse_crow_indices is not None
    targets = read(sdk_body(prompt=range(9), target_prompt_logprobs=tensor)).targets
    assert targets.width == 2 and targets.shape == (8, 40)
    assert targets.ids.tolist() == [[-1, -1], [7, 8], *[[-1, -1]] * 5, [9, -1]]
    assert targets.values_of(np.arange(16, dtype=np.float32).reshape(8, 2)).tolist() == [2, 3, 14]


def test_dense_targets_get_zeros_where_they_ask_for_nothing():
    tensor = TensorData.from_numpy(np.array([[5, -1], [6, 7]]))
    targets = read(sdk_body(target_prompt_logprobs=tensor)).targets
    assert targets.values_of(np.array([[1, 2], [3, 4]], np.float32)).tolist() == [1, 0, 3, 4]


@pytest.mark.parametrize(
    "rows",
    [([0, 1], [0]), ([1, 1, 1], [0]), ([0, 2, 1], [0]), ([0, 1, 1], [9]), ([0, 1, 1], [-1]), ([0, 1, 2], [0])],
)
def test_sparse_targets_whose_rows_dont_fit_are_refused(rows):
    tensor = {
        "data": [5],
        "dtype": "int64",
        "shape": [2, 9],
        "sparse_crow_indices": rows[0],
        "sparse_col_indices": rows[1],
    }
    with pytest.raises(SampleError, match="sparse"):
        read(changed(target_prompt_logprobs=tensor))
