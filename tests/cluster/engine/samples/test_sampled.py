"""The protobuf message with samples, read by the SDK's own decoder."""

import math

import numpy as np
import torch
from tinker.proto.response_conv import deserialize_sample_response

from tandem.cluster.engine.samples.prompt_targets import PromptTargets
from tandem.cluster.engine.samples.sampled import NO_LOGPROB, Sampled, SampledTokens, TopTokens


def floats(*values):
    return np.array(values, np.float32)


def ids(*values):
    return np.array(values, np.int32)


def test_the_sdk_reads_samples():
    first = SampledTokens(
        ids(3, 70000), floats(-0.5, -1.25), TopTokens(ids([3, 4], [5, 6]), floats([0, -1], [-2, -3])), True
    )
    second = SampledTokens(ids(9), floats(-0.1), None, False)
    answer = deserialize_sample_response(Sampled([first, second], num_cached=32).to_protobuf())
    assert [own.stop_reason for own in answer.sequences] == ["stop", "length"]
    assert list(answer.sequences[0].tokens) == [3, 70000]
    assert answer.sequences[0].logprobs == [-0.5, -1.25]
    assert answer.sequences[0].topk_logprobs == [[(3, 0.0), (4, -1.0)], [(5, -2.0), (6, -3.0)]]
    assert answer.sequences[1].topk_logprobs is None
    assert answer.prompt_cache_hit_tokens == 32
    assert answer.prompt_logprobs is None and answer.topk_prompt_logprobs is None
    assert answer.target_prompt_logprobs is None and answer.prompt_alt_tokens is None


def test_the_sdk_reads_what_was_asked_about_the_prompt():
    dense = PromptTargets(np.array([[5, -1], [6, 7]]), (2, 2), None)
    answer = deserialize_sample_response(
        Sampled(
            [SampledTokens(ids(9), floats(-0.1), None, False)],
            num_cached=0,
            prompt_logprobs=floats(math.nan, -1, -2),
            prompt_top=TopTokens(ids([0], [4], [5]), floats([NO_LOGPROB], [-1], [-2])),
            targets=(dense, floats([-1, -2], [-3, -4])),
            alternatives=TopTokens(ids([7], [8]), floats([-5], [-6])),
        ).to_protobuf()
    )
    assert answer.prompt_logprobs == [None, -1.0, -2.0]
    assert answer.topk_prompt_logprobs == [None, [(4, -1.0)], [(5, -2.0)]]
    assert answer.target_prompt_logprobs.tolist() == [[-1, 0], [-3, -4]]
    assert answer.prompt_alt_tokens.tokens.tolist() == [[7], [8]]
    assert answer.prompt_alt_tokens.logprobs.tolist() == [[-5], [-6]]


def test_sparse_targets_come_back_sparse():
    rows = np.array([0, 0, 2]), np.array([1, 3])
    sparse = PromptTargets(np.array([[-1, -1], [6, 7]]), (2, 4), rows)
    sampled = Sampled([], 0, targets=(sparse, floats([-1, -2], [-3, -4])))
    tensor = deserialize_sample_response(sampled.to_protobuf()).target_prompt_logprobs
    assert tensor.sparse_crow_indices is not None
    expected = torch.tensor([[0, 0, 0, 0], [0, -3, 0, -4.0]])
    torch.testing.assert_close(tensor.to_torch(), expected)
