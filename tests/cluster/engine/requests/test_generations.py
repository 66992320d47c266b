"""What enters vLLM's layers is recorded: every token with its logprob, whole or in pieces."""

import asyncio
import math
from types import SimpleNamespace

import pytest

from tandem.cluster.engine.requests.generations import RECORDED, Generation, RecordingClient


class Params(SimpleNamespace):
    def clone(self):
        return Params(**vars(self))


def output(prompt, tokens, logprobs):
    """An output of the engine, with an alternative beside each sampled token."""
    beside = [
        {token: SimpleNamespace(logprob=logprob), token + 1: SimpleNamespace(logprob=-0.5)}
        for token, logprob in zip(tokens, logprobs, strict=True)
    ]
    completion = SimpleNamespace(index=0, token_ids=tuple(tokens), logprobs=beside)
    return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion])


class Client:
    name = "an engine"

    def __init__(self, *outputs):
        self.outputs, self.asked, self.closed = outputs, [], 0

    async def generate(self, prompt, params, request_id, **options):
        self.asked.append((prompt, params.logprobs, request_id, options))
        try:
            for one in self.outputs:
                await asyncio.sleep(0)
                yield one
        finally:
            self.closed += 1


async def recorded(client, params, num_read=None, num_calls=1):
    generations = []
    RECORDED.set(generations)
    recording = RecordingClient(client)
    for call in range(num_calls):
        outputs = recording.generate("prompt", params, f"id-{call}", priority=0)
        seen = []
        async for one in outputs:
            seen.append(one)
            if len(seen) == num_read:
                await outputs.aclose()
                break
        assert seen == list(client.outputs[:num_read])
    assert recording.name == "an engine"
    return generations


def test_pieces_become_one_generation():
    client = Client(output([1, 2], [5], [-0.1]), output([1, 2], [], []), output([1, 2], [6, 5], [-0.2, -0.3]))
    assert asyncio.run(recorded(client, Params(logprobs=None))) == [Generation([1, 2], [5, 6, 5], [-0.1, -0.2, -0.3])]
    assert client.asked == [("prompt", 0, "id-0", {"priority": 0})] and client.closed == 1


def test_logprobs_are_asked_for_without_changing_the_callers_options():
    for asked, sent in ((None, 0), (0, 0), (3, 3)):
        client, params = Client(output([1], [5], [-0.1])), Params(logprobs=asked)
        asyncio.run(recorded(client, params))
        assert (client.asked[0][1], params.logprobs) == (sent, asked)


@pytest.mark.parametrize("logprob", [math.nan, math.inf, -math.inf, -1e9])
def test_what_json_can_not_hold_is_replaced(logprob):
    [generation] = asyncio.run(recorded(Client(output([1], [5], [logprob])), Params(logprobs=None)))
    assert generation.logprobs == [-9999.0]


def test_each_call_of_the_engine_is_a_generation_of_its_own():
    generations = asyncio.run(recorded(Client(output([1], [5], [-0.1])), Params(logprobs=None), num_calls=2))
    assert generations == [Generation([1], [5], [-0.1])] * 2


def test_a_reader_who_leaves_ends_the_generation():
    client = Client(output([1], [5], [-0.1]), output([1], [6], [-0.2]))
    [generation] = asyncio.run(recorded(client, Params(logprobs=None), num_read=1))
    assert generation.token_ids == [5] and client.closed == 1
