"""Samples of the unmodified tinker SDK from a running service: against its learners, its chat and themselves."""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tinker
from tinker import types

BASE = "tandem/tiny"
TOLERANCE = 1e-3  # between float32 logprobs of learner and engine, which compute in other batches
PROMPT = list(range(40, 72))
AT_ONCE, CLIENTS = 512, 64
ENDS_S = 240  # a bound; on an idle machine some seconds
MUCH = {"num": 32, "max_tokens": 900, "stop": []}  # minutes of work, asked for MANY times
MANY = 64
ABANDONED_S = 60  # the default of `tinker.sample_abandoned_s`
ASKS_FOR_MUCH = """if True:
    import sys, tinker
    from tinker import types
    sdk = tinker.ServiceClient(base_url=sys.argv[1], api_key=sys.argv[2])
    client = sdk.create_sampling_client(base_model=sys.argv[3]).result()
    options = types.SamplingParams(max_tokens=900, stop=[])
    futures = [client.sample(types.ModelInput.from_ints([40, 41, 42 + k]), 32, options) for k in range(64)]
    futures[-1].result()
"""


def connect(service) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=service.url, api_key=f"tml-{service.key}")


@pytest.fixture(scope="module")
def sdk(service):
    with connect(service) as sdk:
        yield sdk


@pytest.fixture(scope="module")
def base(sdk) -> tinker.SamplingClient:
    return sdk.create_sampling_client(base_model=BASE).result()


def ended(future, what):
    """Return the result of one of the SDK's futures. Fail with what it was if there is none in time."""
    try:
        return future.result(timeout=ENDS_S)
    except TimeoutError:
        pytest.fail(f"{what} hasn't ended after {ENDS_S} s")


def num_running(service) -> int:
    """Return how many samples the engine computes and has waiting."""
    with service.http() as http:
        [engines] = http.get("/preview/engines").json()["data"]
    return sum((own["requests_running"] or 0) + (own["requests_waiting"] or 0) for own in engines["replicas"])


def wait_until(is_so, seconds=ENDS_S):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


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
def test_a_few_hundred_samples_at_once_have_no_error(service, sdk, base, monkeypatch):
    """Of one client, then of many with a session of their own; heartbeats and other requests are answered meanwhile.

    Slow because it keeps two cores busy for 20 to 45 s, mostly with the 65 clients' own work.
    """
    # With Python 3.11, a client that closes while its telemetry is sent may wait without end: see docs/tinker.md.
    monkeypatch.setenv("TINKER_TELEMETRY", "0")
    asked = [sample(base, PROMPT[: 8 + k % 24]) for k in range(AT_ONCE)]
    assert BASE in [model.model_name for model in sdk.get_server_capabilities().supported_models]
    assert all(len(ended(one, f"sample {k}").sequences[0].tokens) for k, one in enumerate(asked))

    def of_a_client(number):
        sdk, who = connect(service), f"of client {number}"
        client = ended(sdk.create_sampling_client(base_model=BASE), f"create_sampling_client {who}")
        futures = [sample(client, PROMPT[: 8 + k]) for k in range(AT_ONCE // CLIENTS)]
        lengths = [len(ended(one, f"sample {k} {who}").sequences[0].tokens) for k, one in enumerate(futures)]
        ended(sdk.close("success"), f"close {who}")
        return lengths

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert all(map(all, pool.map(of_a_client, range(CLIENTS))))


@pytest.mark.slow
def test_the_engine_stops_what_its_client_cancels(service, base):
    """In seconds, also what was on its way when it was cancelled, so that the client never knew its id."""
    futures = [sample(base, [40, 41, 42 + k], **MUCH) for k in range(MANY)]
    wait_until(lambda: num_running(service) > 0)
    for future in futures:
        future.future().cancel()
    wait_until(lambda: num_running(service) == 0, ABANDONED_S - 10)


@pytest.mark.slow
def test_the_engine_stops_what_a_killed_client_has_asked_for(service):
    """After `tinker.sample_abandoned_s`, which is why it takes long."""
    asked = [sys.executable, "-c", ASKS_FOR_MUCH, service.url, f"tml-{service.key}", BASE]
    client = subprocess.Popen(asked)
    try:
        wait_until(lambda: num_running(service) > 0)
    finally:
        client.kill()
        client.wait()
    wait_until(lambda: num_running(service) == 0, 150)


def test_what_cant_be_sampled_is_the_users_error(base):
    with pytest.raises(tinker.BadRequestError, match="temperature"):
        sample(base, temperature=5.0).result(timeout=60)
    with pytest.raises(tinker.BadRequestError, match="prompt"):
        sample(base, [10**6]).result(timeout=60)
