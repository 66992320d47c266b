"""Samples from a real engine: against transformers, chat completions, the engine's own scores and themselves."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from engine_client import Answer, ask, start_engine
from policy_reference import PolicyReference, write_adapter
from tinker.proto.response_conv import deserialize_sample_response
from tinker.types._pydantic_types.tensor_data import TensorData
from tinker.types.sample_response import SampleResponse
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.metrics.usage import Charged, Used
from tandem.cluster.engine.requests.protocols import CHAT
from tandem.cluster.engine.samples.futures import SampleLimits
from tandem.cluster.engine.samples.samples_app import FETCH_PATH, START_PATH
from tandem.cluster.engine.server import EngineAddress
from tandem.rl.settings import LoraSettings

MAX_MODEL_LEN = 256
CONFIG = EngineConfig(max_num_seqs=32, max_loras=3, max_cpu_loras=4, kv_cache_memory_bytes=4 << 20)
ZERO, OTHER, NOT_FINITE, MISSING = (f"{k:064x}" for k in range(4))
LIMITS = SampleLimits(max_waiting=40)
TOLERANCE = 1e-4
PROMPT = list(range(40, 80))
PAYER = Charged("sample", "team", "key", "model", 3)


class Client:
    def __init__(self, actor: Any, address: EngineAddress):
        self.actor, self.address = actor, address
        self._seqs = itertools.count()

    def start(
        self, digest: str = OTHER, seq: int | None = None, params: Any = None, **fields: Any
    ) -> tuple[int, Answer]:
        seq = next(self._seqs) if seq is None else seq
        fields.setdefault("prompt", PROMPT)
        body = {
            "sampling_session_id": "s",
            "seq_id": seq,
            "sampling_params": params or {},
            **fields,
            "prompt": {"chunks": [{"type": "encoded_text", "tokens": fields["prompt"]}]},
        }
        return seq, ask(self.address, digest, body, START_PATH, PAYER).finish()

    def fetch(self, seq: int, hold_s: float = 60) -> Answer:
        return ask(self.address, OTHER, {"session": "s", "seq": seq, "hold_s": hold_s}, FETCH_PATH).finish()

    def sample(self, digest: str = OTHER, **fields: Any) -> SampleResponse:
        seq, started = self.start(digest, **fields)
        assert started.status == 200, started.body
        answer = self.fetch(seq)
        assert answer.status == 200, answer.body
        return deserialize_sample_response(answer.body)

    def shift_clock(self, seconds: float) -> None:
        """Let time pass for the samples that are kept."""

        def shift(engine: Any) -> None:
            engine.samples.futures._clock = lambda: time.monotonic() + seconds

        ray.get(self.actor.__ray_call__.remote(shift))

    def num_waiting(self) -> int:
        """Return how many samples aren't done."""
        return ray.get(self.actor.__ray_call__.remote(lambda engine: engine.samples.futures.num_waiting))

    def wait_until_held(self, seq: int) -> None:
        """Wait until the engine holds a request for a sample."""
        deadline = time.monotonic() + 40

        def num_holding(engine: Any) -> int:
            return engine.samples.futures._entries["s", seq].num_holding

        while not ray.get(self.actor.__ray_call__.remote(num_holding)):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 40
        while ray.get(self.actor.load.remote())["num_unfinished"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.fixture(scope="module")
def artifacts(tiny_model, tmp_path_factory) -> Artifacts:
    artifacts = Artifacts(str(tmp_path_factory.mktemp("artifacts")))
    for seed, (digest, scale) in enumerate([(ZERO, 0.0), (OTHER, 0.05), (NOT_FINITE, float("nan"))]):
        write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed, scale)
    return artifacts


@pytest.fixture(scope="module")
def reference(tiny_model, artifacts) -> PolicyReference:
    return PolicyReference(tiny_model, {digest: artifacts.checkpoints_dir / digest for digest in (ZERO, OTHER)})


@pytest.fixture(scope="module")
def client(ray_local, tiny_model, artifacts) -> Iterator[Client]:
    arguments = CONFIG, str(tiny_model), "tiny", artifacts.pull_checkpoint, MAX_MODEL_LEN, LoraSettings()
    actor, address = start_engine(tiny_model, 64, *arguments, sample_limits=LIMITS)
    yield Client(actor, address)
    ray.get(actor.stop.remote())
    ray.kill(actor)


def of_reference(reference: PolicyReference, digest: str, tokens: list[int]) -> list[float]:
    """The logprob of each token but the first."""
    return reference.logprobs(digest, tokens).tolist()


@pytest.mark.parametrize("digest", [ZERO, OTHER])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.6, "top_k": 20, "top_p": 0.9}])
def test_logprobs_are_those_of_the_policy_whatever_the_sampling_options(client, reference, digest, params):
    answer = client.sample(digest, num_samples=3, params={"max_tokens": 12, **params})
    assert len(answer.sequences) == 3
    for own in answer.sequences:
        expected = of_reference(reference, digest, PROMPT + own.tokens)[len(PROMPT) - 1 :]
        assert own.logprobs == pytest.approx(expected, abs=TOLERANCE)


def test_prompt_logprobs_of_a_sample_are_its_own_and_the_scores(client, reference):
    [own] = client.sample(params={"max_tokens": 20, "seed": 1}).sequences
    whole = PROMPT + own.tokens
    scored = client.sample(prompt=whole, prompt_logprobs=True, params={"max_tokens": 1}).prompt_logprobs
    assert scored[0] is None and len(scored) == len(whole)
    assert scored[len(PROMPT) :] == pytest.approx(own.logprobs, abs=TOLERANCE)
    assert scored[1:] == pytest.approx(of_reference(reference, OTHER, whole), abs=TOLERANCE)
    [by_engine] = ray.get(client.actor.score.remote([whole], OTHER))
    assert scored[1:] == pytest.approx(by_engine[1:], abs=TOLERANCE)
    last = client.sample(
        prompt=whole, prompt_logprobs=True, prompt_logprobs_last_n=5, topk_prompt_logprobs=2, params={"max_tokens": 1}
    )
    assert last.prompt_logprobs[:-5] == [None] * (len(whole) - 5)
    assert last.prompt_logprobs[-5:] == pytest.approx(scored[-5:], abs=TOLERANCE)
    assert [row is None for row in last.topk_prompt_logprobs] == [True] * (len(whole) - 5) + [False] * 5


def test_greedy_samples_are_the_tokens_of_a_greedy_chat_and_all_equal(client):
    body = {
        "messages": [{"role": "user", "content": "What is 3 plus 4?"}],
        "temperature": 0,
        "max_tokens": 24,
        "return_token_ids": True,
    }
    chat = ask(client.address, OTHER, body, CHAT).finish().json()
    params = {"temperature": 0.0, "max_tokens": 24}
    answer = client.sample(prompt=chat["prompt_token_ids"], num_samples=3, params=params)
    assert [own.tokens for own in answer.sequences] == [chat["choices"][0]["token_ids"]] * 3


def test_a_seed_repeats_and_samples_of_a_request_differ(client):
    params = {"max_tokens": 20, "seed": 7}
    first, second, other = (
        [own.tokens for own in client.sample(num_samples=3, params=p).sequences]
        for p in (params, params, {**params, "seed": 70})
    )
    assert first == second != other
    assert len({tuple(tokens) for tokens in first}) == 3
    with_prompt = client.sample(num_samples=3, prompt_logprobs=True, params=params)
    assert [own.tokens for own in with_prompt.sequences] == first


def test_the_likeliest_tokens_are_those_of_the_reference(client, reference):
    answer = client.sample(params={"max_tokens": 6}, topk_prompt_logprobs=3, topk_sample_logprobs=4)
    whole = PROMPT + answer.sequences[0].tokens
    logits = reference.all_logprobs(OTHER, whole)
    assert answer.topk_prompt_logprobs[0] is None and len(answer.topk_prompt_logprobs) == len(PROMPT)
    for position, row in enumerate(answer.topk_prompt_logprobs[1:]):
        check_row(row, logits[position], 3)
    for step, row in enumerate(answer.sequences[0].topk_logprobs):
        check_row(row, logits[len(PROMPT) - 1 + step], 4)


def test_the_likeliest_tokens_are_right_beside_scores(client, reference):
    """Both are rows of one batch, of which vLLM's sampler makes one table."""
    sequences = [[40 + (k + j) % 60 for j in range(length)] for k, length in enumerate([100, 30, 2] * 8)]
    expected = [of_reference(reference, OTHER, tokens) for tokens in sequences]
    for _ in range(3):
        scoring = client.actor.score.remote(sequences, OTHER)
        answer = client.sample(params={"max_tokens": 30, "seed": 5, "stop": []}, topk_sample_logprobs=4)
        logits = reference.all_logprobs(OTHER, PROMPT + answer.sequences[0].tokens)
        for step, row in enumerate(answer.sequences[0].topk_logprobs):
            check_row(row, logits[len(PROMPT) - 1 + step], 4)
        for found, logprobs in zip(ray.get(scoring), expected, strict=True):
            assert found[1:] == pytest.approx(logprobs, abs=TOLERANCE)


def check_row(row: list[tuple[int, float]], logprobs: torch.Tensor, k: int) -> None:
    assert [logprob for _, logprob in row] == pytest.approx(logprobs.topk(k).values.tolist(), abs=TOLERANCE)
    assert [logprobs[token].item() for token, _ in row] == pytest.approx([p for _, p in row], abs=TOLERANCE)


@pytest.mark.parametrize("length", [40, 200])  # the longer prompt is computed in parts
def test_targets_and_drawn_alternatives_are_scored_at_their_positions(client, reference, length):
    prompt = [40 + k % 60 for k in range(length)]
    targets = np.full((length - 1, 50), -1)
    targets[3, :2], targets[-1, 49] = (5, 6), 7
    tensor = TensorData.from_torch_sparse(torch.from_numpy(targets), pad_value=-1).model_dump(exclude_none=True)
    assert "sparse_crow_indices" in tensor
    answer = client.sample(
        prompt=prompt,
        prompt_logprobs=True,
        topk_prompt_logprobs=2,
        target_prompt_logprobs=tensor,
        prompt_alt_tokens_k=4,
        params={"max_tokens": 1, "seed": 3},
    )
    expected = reference.all_logprobs(OTHER, prompt)
    found = answer.target_prompt_logprobs.to_torch()
    assert found.shape == targets.shape
    for row, column, token in [(3, 0, 5), (3, 1, 6), (length - 2, 49, 7)]:
        assert found[row, column].item() == pytest.approx(expected[row, token].item(), abs=TOLERANCE)
    assert torch.count_nonzero(found) == 3
    tokens, logprobs = (t.to_torch() for t in (answer.prompt_alt_tokens.tokens, answer.prompt_alt_tokens.logprobs))
    assert tokens.shape == logprobs.shape == (length - 1, 4)
    torch.testing.assert_close(logprobs, expected[:-1].gather(1, tokens), rtol=0, atol=TOLERANCE)
    assert len({tuple(row) for row in tokens.T.tolist()}) == 4
    assert answer.prompt_logprobs[1:] == pytest.approx(of_reference(reference, OTHER, prompt), abs=TOLERANCE)
    check_row(answer.topk_prompt_logprobs[5], expected[4], 2)


def test_generations_end_with_their_stop_tokens_and_texts(client, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    greedy = {"temperature": 0.0, "max_tokens": 24}
    [free] = client.sample(params={**greedy, "stop": []}).sequences
    assert len(free.tokens) == 24 and free.stop_reason == "length"
    stop = free.tokens[4]
    end = free.tokens.index(stop) + 1
    [by_id] = client.sample(params={**greedy, "stop": [stop]}).sequences
    assert (by_id.tokens, by_id.stop_reason) == (free.tokens[:end], "stop")
    assert by_id.logprobs == pytest.approx(free.logprobs[:end], abs=TOLERANCE)
    text = tokenizer.decode(free.tokens[:8])[-3:]
    for given in (text, [text]):
        [by_text] = client.sample(params={**greedy, "stop": given}).sequences
        assert by_text.stop_reason == "stop" and tokenizer.decode(by_text.tokens).endswith(text)
        assert by_text.tokens == free.tokens[: len(by_text.tokens)] and len(by_text.logprobs) == len(by_text.tokens)


def test_without_a_limit_a_sample_ends_with_the_context(client):
    [own] = client.sample(params={"stop": []}, prompt=PROMPT * 6).sequences
    assert len(own.tokens) == MAX_MODEL_LEN - len(PROMPT * 6) and own.stop_reason == "length"


def test_a_prompt_that_was_seen_before_hits_the_cache(client):
    prompt = list(range(100, 170))
    first, second = (client.sample(prompt=prompt, params={"max_tokens": 1}, num_samples=4) for _ in range(2))
    assert first.prompt_cache_hit_tokens == 0
    assert second.prompt_cache_hit_tokens == 64  # whole blocks


def test_samples_are_charged_as_completions_are(client):
    client.wait_until_idle()
    batches, _ = ray.get(client.actor.take_usage.remote(0))
    number = max((batch.number for batch in batches), default=0)
    client.sample(params={"max_tokens": 5, "stop": []}, num_samples=3)
    batches, _ = ray.get(client.actor.take_usage.remote(number))
    used = Used()
    for batch in batches:
        for charged, amounts in batch.used.items():
            if charged == PAYER:
                used.add(amounts)
    assert (used.requests, used.prompt_tokens, used.sampled_tokens) == (1, len(PROMPT), 15)


def test_faults_of_the_request_are_refused_at_once(client):
    for fields in ({"prompt": [1 << 20]}, {"prompt": [1] * MAX_MODEL_LEN}, {"topk_prompt_logprobs": 1000}, {"x": 1}):
        _, started = client.start(**fields)
        assert started.status == 400 and started.json()["error"], fields


def test_versions_that_cant_be_sampled_fail_as_the_users_error(client):
    for digest in (NOT_FINITE, MISSING):
        seq, started = client.start(digest)
        assert started.status == 200
        answer = client.fetch(seq)
        assert (answer.status, answer.json()["category"]) == (422, "user")


def test_a_sample_is_computed_once_and_fetched_again(client):
    seq, _ = client.start(params={"max_tokens": 8})
    client.start(seq=seq, params={"max_tokens": 8})
    assert client.fetch(seq).body == client.fetch(seq).body
    _, other = client.start(seq=seq, params={"max_tokens": 9})
    assert other.status == 400
    assert client.fetch(10**6).status == 410


def test_too_many_waiting_samples_are_held_off(client):
    seq, _ = client.start(num_samples=40, prompt=[1], params={"stop": []})
    _, refused = client.start()
    assert refused.status == 429
    waiting = client.fetch(seq, hold_s=0)
    assert waiting.status == 202 and not waiting.json()["is_paused"]
    deadline = time.monotonic() + 60
    while client.fetch(seq, hold_s=5).status == 202:
        assert time.monotonic() < deadline
    client.wait_until_idle()


def test_samples_that_nobody_asks_for_are_aborted(client):
    seq, _ = client.start(num_samples=40, prompt=[1, 2, 3], params={"stop": []})
    hour = 3600
    client.shift_clock(hour)
    deadline = time.monotonic() + 30
    while client.fetch(seq, hold_s=0).status != 410:
        assert time.monotonic() < deadline
        client.shift_clock(hour := 2 * hour)
        time.sleep(1.5)
    client.shift_clock(0)
    client.wait_until_idle()


def test_a_sample_whose_client_left_while_it_was_held_is_aborted(client):
    """Long before the time is over that the request would have been held."""
    ray.get(client.actor.lease_sleep.remote("learner", 50))  # so that nothing ends by itself
    try:
        seq, started = client.start()
        assert started.status == 200
        held = ask(client.address, OTHER, {"session": "s", "seq": seq, "hold_s": 60}, FETCH_PATH)
        client.wait_until_held(seq)
        held.cancel()
        hour, deadline = 3600, time.monotonic() + 30
        while client.num_waiting():
            assert time.monotonic() < deadline
            client.shift_clock(hour := 2 * hour)
            time.sleep(1.5)
        assert client.fetch(seq, hold_s=0).status == 410
    finally:
        client.shift_clock(0)
        ray.get(client.actor.release_sleep.remote("learner"))


def test_while_the_engine_sleeps_samples_wait_with_a_reason(client):
    ray.get(client.actor.lease_sleep.remote("learner", 30))
    seq, started = client.start(params={"max_tokens": 4})
    assert started.status == 200
    deadline = time.monotonic() + 20
    while not (waiting := client.fetch(seq, hold_s=0.2)).json()["is_paused"]:
        assert waiting.status == 202 and time.monotonic() < deadline
    assert waiting.status == 202 and "earners" in waiting.json()["reason"]
    ray.get(client.actor.release_sleep.remote("learner"))
    assert client.fetch(seq).status == 200
