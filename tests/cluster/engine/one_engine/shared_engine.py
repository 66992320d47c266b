"""A client of the engine that the tests of this folder share, its policy versions, and comparisons of its answers."""

from __future__ import annotations

import time
from typing import Any

import psutil
import ray
import torch
from engine_client import Answer, Asked, ask, core_of
from policy_reference import PolicyReference, sampled_tokens

from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.requests.protocols import CHAT
from tandem.cluster.engine.server import EngineAddress
from tandem.rl.settings import LoraSettings

MAX_MODEL_LEN = 256
CONFIG = EngineConfig(max_num_seqs=32, max_loras=3, max_cpu_loras=4, kv_cache_memory_bytes=1 << 20)
VERSIONS = [f"{k:064x}" for k in range(7)]  # the first is the zero adapter
OTHER_SETTINGS = {  # than the engine's, which are the largest that a model may have
    2: LoraSettings(r=2, alpha=30, target_modules=("q_proj", "v_proj", "up_proj")),
    3: LoraSettings(r=5, alpha=20, target_modules=("down_proj", "o_proj")),
}
TOLERANCE = 1e-4
# Longer than two blocks of the prefix cache, and the same under every version.
MESSAGES = [{"role": "user", "content": "Which of these numbers is the largest: 3, 17, 8, 41, 5, 22 or 39? " * 2}]
MANY = 384
PLUS = {"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "temperature": 0, "max_tokens": 48}
HELLO = PLUS | {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]}
LONG = {"messages": MESSAGES, "n": MANY, "ignore_eos": True}  # a minute of work


class Client:
    """The engine actor, for tests that aren't asynchronous."""

    def __init__(self, actor: Any, address: EngineAddress):
        self.actor, self.address = actor, address

    def start(self, digest: str, body: Any, path: str = CHAT) -> Asked:
        return ask(self.address, digest, body, path)

    def finish(self, asked: Asked) -> Answer:
        return asked.finish()

    def ask(self, digest: str, body: Any, path: str = CHAT) -> Answer:
        return self.finish(self.start(digest, body, path))

    def chat(self, digest: str, **options: Any) -> dict[str, Any]:
        answer = self.ask(digest, {"messages": MESSAGES, "logprobs": True, "return_token_ids": True} | options)
        assert answer.status == 200, answer.body
        return answer.json()

    def score(self, sequences: list[list[int]], digest: str) -> list[list[float]]:
        return ray.get(self.actor.score.remote(sequences, digest))

    def load(self) -> dict[str, Any]:
        return ray.get(self.actor.load.remote())

    def wait_until_busy(self, num_unfinished: int) -> None:
        """Wait for `num_unfinished` requests. Pass less than the number sent: some may end before the first poll."""
        deadline = time.monotonic() + 300
        while self.load()["num_unfinished"] < num_unfinished:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_until_idle(self, but_for: int = 0) -> None:
        """Wait until aborted work has ended. The deadline is shorter than the work would take without the abort."""
        deadline = time.monotonic() + 40
        while (num_unfinished := self.load()["num_unfinished"]) > but_for:
            assert time.monotonic() < deadline, f"{num_unfinished} requests are unfinished"
            time.sleep(0.01)

    def core_process(self) -> psutil.Process:
        return core_of(self.actor)


def assert_choices_follow_policy(completion: dict[str, Any], reference: PolicyReference, digest: str) -> None:
    """Assert that there is one logprob per sampled token, and that it equals the policy's."""
    prompt = completion["prompt_token_ids"]
    for choice in completion["choices"]:
        ids, logprobs = sampled_tokens(choice)
        assert ids == choice["token_ids"]
        expected = reference.logprobs(digest, prompt + ids)[len(prompt) - 1 :]
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=TOLERANCE)


def greedy(client: Client, digest: str) -> dict[str, Any]:
    return client.chat(digest, temperature=0, max_tokens=24, ignore_eos=True)


def assert_same_answer(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert equal tokens, and logprobs equal up to rounding, which depends on the hits in the prefix cache."""
    (first_ids, first_logprobs), (second_ids, second_logprobs) = (
        sampled_tokens(c["choices"][0]) for c in (first, second)
    )
    assert first_ids == second_ids
    torch.testing.assert_close(first_logprobs, second_logprobs, rtol=0, atol=1e-5)


def random_sequences(num: int, seed: int) -> list[list[int]]:
    """Return `num` random sequences: of 1, 2 and MAX_MODEL_LEN tokens, the others of 200."""
    lengths = ([1, 2, MAX_MODEL_LEN] + [200] * num)[:num]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, 500, (length,), generator=generator).tolist() for length in lengths]
