"""Samples of the unmodified tinker SDK from a running service: against its learners, its chat and themselves."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import tinker
from tinker import types

BASE = "tandem/tiny"
TOLERANCE = 1e-3  # between float32 logprobs of learner and engine, which compute in other batches
PROMPT = list(range(40, 72))
AT_ONCE, CLIENTS = 512, 64


def connect(service) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=service.url, api_key=f"tml-{service.key}")


@pytest.fixture(scope="module")
def sdk(service):
    with connect(service) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def base(sdk) -> tinker.SamplingClient:
    return sdk.create_sampling_client(base_model=BASE).result()


def sample(client, tokens=PROMPT, num=1, **params):
    options = types.SamplingParams(**{"max_tokens": 12, **params})
    return client.sample(types.ModelInput.from_ints(tokens), num, options)


def test_the_logprobs_of_a_trained_model_are_those_of_its_learner(sdk):
    run = sdk.create_lora_training_client(BASE, rank=8, seed=5).result()
    target = types.Datum(
        model_input=types.ModelInput.from_ints(PROMPT[:-1]),
        loss_fn_inputs={"target_tokens": PROMPT[1:], "weights": [1.0] * (len(PROMPT) - 1)},
    )
    run.forward_backward([target], "cross_entropy")
    run.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    client = run.save_weights_and_get_sampling_client().result()
    [own] = sample(client, seed=1).result(timeout=300).sequences
    whole = PROMPT + own.tokens
    scored = client.compute_logprobs(types.ModelInput.from_ints(whole)).result(timeout=300)
    assert scored[0] is None
    assert own.logprobs == pytest.approx(scored[len(PROMPT) :], abs=TOLERANCE)
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(whole[:-1]),
        loss_fn_inputs={"target_tokens": whole[1:], "weights": [1.0] * (len(whole) - 1)},
    )
    [output] = run.forward([datum], "cross_entropy").result().loss_fn_outputs
    assert output["logprobs"].tolist() == pytest.approx(scored[1:], abs=TOLERANCE)
    with_base = sdk.create_sampling_client(base_model=BASE).result()
    before = with_base.compute_logprobs(types.ModelInput.from_ints(whole)).result(timeout=300)
    assert max(abs(a - b) for a, b in zip(before[1:], scored[1:], strict=True)) > 10 * TOLERANCE


def test_greedy_samples_are_the_tokens_of_a_greedy_chat(service, base):
    with service.http() as http:
        asked = {"model": BASE, "messages": [{"role": "user", "content": "What is 3 plus 4?"}], "temperature": 0}
        choice = http.post("/chat/completions", json={**asked, "max_tokens": 24}).json()["choices"][0]
    [own] = sample(base, choice["prompt_token_ids"], temperature=0.0, max_tokens=24).result(timeout=300).sequences
    assert own.tokens == choice["token_ids"]


def test_seeds_repeat(base):
    first, second, other = (sample(base, num=3, seed=seed).result(timeout=300) for seed in (7, 7, 70))
    tokens = [[own.tokens for own in answer.sequences] for answer in (first, second, other)]
    assert tokens[0] == tokens[1] != tokens[2]


@pytest.mark.slow
def test_a_few_hundred_samples_at_once_have_no_error(service, sdk, base):
    """Of one client, then of many with a session of their own; heartbeats and other requests are answered meanwhile."""
    asked = [sample(base, PROMPT[: 8 + k % 24]) for k in range(AT_ONCE)]
    assert BASE in [model.model_name for model in sdk.get_server_capabilities().supported_models]
    assert all(len(one.result(timeout=300).sequences[0].tokens) for one in asked)

    def of_a_client(_):
        with connect(service) as sdk:
            client = sdk.create_sampling_client(base_model=BASE).result()
            futures = [sample(client, PROMPT[: 8 + k]) for k in range(AT_ONCE // CLIENTS)]
            return [len(future.result(timeout=300).sequences[0].tokens) for future in futures]

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(map(all, pool.map(of_a_client, range(CLIENTS))))


def test_what_cant_be_sampled_is_the_users_error(base):
    with pytest.raises(tinker.BadRequestError, match="temperature"):
        sample(base, temperature=5.0).result(timeout=60)
    with pytest.raises(tinker.BadRequestError, match="prompt"):
        sample(base, [10**6]).result(timeout=60)
