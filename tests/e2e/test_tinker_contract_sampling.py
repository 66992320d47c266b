"""Each public method of the tinker SDK's SamplingClient, on the whole service."""

import asyncio
import pickle

import httpx
import numpy as np
import pytest
import tinker
import torch
from tinker import types
from tinker_service import ENGINE_TOLERANCE, TINY, new_run, prompt, random_tokens, step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
GREEDY = types.SamplingParams(max_tokens=12, temperature=0.0)
END = 2  # <|im_end|>, which ends the tiny model's turns


@pytest.fixture(scope="module")
def sampler(sdk):
    return sdk.create_sampling_client(base_model=TINY).result()


@pytest.fixture(scope="module")
def question(sdk):
    tokenizer = new_run(sdk).get_tokenizer()
    messages = [{"role": "user", "content": "Which is the biggest: 3, 17 or 8?"}]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def test_samples_have_tokens_and_the_models_own_logprobs(sampler, question):
    params = types.SamplingParams(max_tokens=20, temperature=0.7, seed=5)
    response = sampler.sample(prompt(question), 4, params).result()
    assert len(response.sequences) == 4
    assert len({sequence.sequence_id for sequence in response.sequences}) == 4
    for sequence in response.sequences:
        assert len(sequence.tokens) == len(sequence.logprobs) > 0
        assert (sequence.stop_reason == "stop") == (sequence.tokens[-1] == END), "the token that stops is part of it"
        scored = sampler.compute_logprobs(prompt([*question, *sequence.tokens])).result()
        np.testing.assert_allclose(sequence.logprobs, scored[len(question) :], atol=ENGINE_TOLERANCE)
    again = asyncio.run(sampler.sample_async(prompt(question), 4, params))
    assert [s.tokens for s in again.sequences] == [s.tokens for s in response.sequences], "the seed is the same"


def test_sampling_params(sampler, question):
    greedy = sampler.sample(prompt(question), 1, GREEDY).result().sequences[0]
    assert greedy.stop_reason == "stop" and greedy.tokens[-1] == END
    for likeliest in (types.SamplingParams(max_tokens=12, top_k=1), types.SamplingParams(max_tokens=12, top_p=1e-6)):
        assert sampler.sample(prompt(question), 1, likeliest).result().sequences[0].tokens == greedy.tokens
    short = types.SamplingParams(max_tokens=3, temperature=0.0)
    cut = sampler.sample(prompt(question), 1, short).result().sequences[0]
    assert (cut.tokens, cut.stop_reason) == (greedy.tokens[:3], "length")


def test_what_stops_a_sample(sampler, question):
    greedy = sampler.sample(prompt(question), 1, GREEDY).result().sequences[0].tokens
    tokenizer = _tokenizer()

    def tokens(stop):
        params = types.SamplingParams(max_tokens=12, temperature=0.0, stop=stop)
        return sampler.sample(prompt(question), 1, params).result().sequences[0]

    by_token = tokens([greedy[2]])
    assert (by_token.tokens, by_token.stop_reason) == (greedy[:3], "stop")
    for stop in (tokenizer.decode(greedy[1:2]), [tokenizer.decode(greedy[1:2])]):
        by_text = tokens(stop)
        assert (by_text.tokens, by_text.stop_reason) == (greedy[:2], "stop")
    endless = tokens([])
    assert (len(endless.tokens), endless.stop_reason) == (12, "length"), "an empty list means that nothing stops it"


def _tokenizer():
    from transformers import AutoTokenizer

    from tandem.rl.tiny.model import TINY_MODEL_DIR

    return AutoTokenizer.from_pretrained(TINY_MODEL_DIR)


def test_logprobs_of_the_prompt(sampler):
    tokens = random_tokens(3, 16)
    whole = sampler.compute_logprobs(prompt(tokens)).result()
    assert whole[0] is None and len(whole) == 16 and all(value < 0 for value in whole[1:])
    last = asyncio.run(sampler.compute_logprobs_async(prompt(tokens), 4))
    assert last[:12] == [None] * 12
    np.testing.assert_allclose(last[12:], whole[12:], atol=ENGINE_TOLERANCE)
    one = types.SamplingParams(max_tokens=1, temperature=0.0)
    response = sampler.sample(prompt(tokens), 1, one, include_prompt_logprobs=True, prompt_logprobs_last_n=4).result()
    assert response.prompt_logprobs[:12] == [None] * 12
    np.testing.assert_allclose(response.prompt_logprobs[12:], whole[12:], atol=ENGINE_TOLERANCE)


def test_the_likeliest_tokens_of_prompt_and_sample(sampler, question):
    response = sampler.sample(
        prompt(question), 1, GREEDY, include_prompt_logprobs=True, topk_prompt_logprobs=3, topk_sample_logprobs=2
    ).result()
    sequence = response.sequences[0]
    assert len(sequence.topk_logprobs) == len(sequence.tokens)
    for row, token, logprob in zip(sequence.topk_logprobs, sequence.tokens, sequence.logprobs, strict=True):
        assert len(row) == 2 and row[0][0] == token, "greedy"
        assert row[0][1] == pytest.approx(logprob, abs=ENGINE_TOLERANCE) and row[0][1] >= row[1][1]
    assert response.topk_prompt_logprobs[0] is None and len(response.topk_prompt_logprobs) == len(question)
    for position in range(1, len(question)):
        row = response.topk_prompt_logprobs[position]
        assert [logprob for _, logprob in row] == sorted((logprob for _, logprob in row), reverse=True)
        assert len(row) == 3 and row[0][1] >= response.prompt_logprobs[position] - ENGINE_TOLERANCE


@pytest.mark.parametrize("is_sparse", [False, True])
def test_logprobs_of_chosen_tokens(sampler, is_sparse):
    tokens = random_tokens(8, 12)
    ids = torch.full((11, 2), -1, dtype=torch.int64)
    ids[4, 0], ids[4, 1], ids[10, 0] = tokens[5], 77, 88
    if not is_sparse:
        ids[ids == -1] = 99
    wanted = types.TensorData.from_torch_sparse(ids, pad_value=-1) if is_sparse else types.TensorData.from_torch(ids)
    one = types.SamplingParams(max_tokens=1)
    response = sampler.sample(
        prompt(tokens), 1, one, include_prompt_logprobs=True, target_prompt_logprobs=wanted
    ).result()
    found = response.target_prompt_logprobs.to_torch()
    assert found.shape == (11, 2)
    assert found[4, 0].item() == pytest.approx(response.prompt_logprobs[5], abs=ENGINE_TOLERANCE)
    changed = sampler.compute_logprobs(prompt([*tokens[:11], 88])).result()
    assert found[10, 0].item() == pytest.approx(changed[11], abs=ENGINE_TOLERANCE)


def test_alternatives_to_each_token_of_the_prompt(sampler):
    tokens = random_tokens(8, 12)
    one = types.SamplingParams(max_tokens=1, temperature=1.0)
    drawn = sampler.sample(prompt(tokens), 1, one, prompt_alt_tokens_k=3).result().prompt_alt_tokens
    ids, values = drawn.tokens.to_torch(), drawn.logprobs.to_torch()
    assert ids.shape == values.shape == (11, 3)
    scored = sampler.compute_logprobs(prompt([*tokens[:6], int(ids[5, 1])])).result()
    assert values[5, 1].item() == pytest.approx(scored[6], abs=ENGINE_TOLERANCE)


def test_what_a_sampler_is(sdk, sampler, service, tmp_path, monkeypatch):
    assert sampler.get_base_model() == asyncio.run(sampler.get_base_model_async()) == TINY
    assert sampler.get_telemetry() is sdk.get_telemetry()
    sampler.on_queue_state_change(tinker.lib.api_future_impl.QueueState.PAUSED_CAPACITY, "a test")
    archive = httpx.get(f"{service.url}/api/v1/tokenizers/{TINY}", headers={"X-API-Key": f"tml-{service.key}"})
    assert archive.status_code == 200, archive.text
    _unpack(archive.content, tmp_path)
    monkeypatch.chdir(tmp_path)  # where the SDK looks for a model of this name
    assert len(sampler.get_tokenizer()) == 512


def _unpack(content, directory):
    import io
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(directory, filter="data")


def test_a_sampler_goes_to_other_processes(sdk, service, question):
    client = new_run(sdk)
    step(client)
    sampler = client.save_weights_and_get_sampling_client().result()
    wanted = sampler.compute_logprobs(prompt(question)).result()[1:]
    by_handle = tinker.SamplingClient.from_sampler_handle(sampler.get_sampler_handle(), api_key=f"tml-{service.key}")
    by_pickle = pickle.loads(pickle.dumps(sampler))
    created = tinker.SamplingClient.create(sdk.holder, base_model=TINY).result()
    for other in (by_handle, by_pickle):
        np.testing.assert_allclose(other.compute_logprobs(prompt(question)).result()[1:], wanted, atol=ENGINE_TOLERANCE)
    untrained = created.compute_logprobs(prompt(question)).result()[1:]
    assert np.abs(np.array(untrained) - wanted).max() > 10 * ENGINE_TOLERANCE


def test_a_prompt_that_is_too_long_is_the_users_error(sampler):
    with pytest.raises(tinker.TinkerError, match="1024"):
        sampler.sample(prompt(random_tokens(0, 1100)), 1, GREEDY).result(timeout=60)
    with pytest.raises(tinker.TinkerError, match="512"):
        sampler.sample(prompt([5, 100_000]), 1, GREEDY).result(timeout=60)
