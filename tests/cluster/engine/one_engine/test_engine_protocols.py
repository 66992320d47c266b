"""Responses and Messages sample the tokens that chat samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_client import REQUESTED
from protocol_answers import request_to, said_in
from transformers import AutoTokenizer

from one_engine.shared_engine import HELLO, PLUS, VERSIONS
from tandem.cluster.engine.requests.protocols import CHAT, COUNT_TOKENS, RESPONSES
from tandem.cluster.engine.requests.protocols import MESSAGES as MESSAGES_PATH
from tandem.rl.tiny.corpus import ADD_TOOL

pytestmark = pytest.mark.usefixtures("ray_local")

IN_EACH_PROTOCOL = {
    "an answer": HELLO,
    "a limit": HELLO | {"max_tokens": 3},
    "a stop sequence": HELLO | {"stop": ["help"]},
    "text like a call": PLUS,  # no tools are offered
    "a call": PLUS | {"tools": [ADD_TOOL]},
    "a forced call": PLUS | {"tools": [ADD_TOOL], "tool_choice": "required"},
    "no call": PLUS | {"tools": [ADD_TOOL], "tool_choice": "none"},
}


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES_PATH])
@pytest.mark.parametrize("chat", IN_EACH_PROTOCOL.values(), ids=IN_EACH_PROTOCOL)
def test_other_protocols_sample_the_tokens_of_chat(client, path, chat):
    def ask(path, is_stream=False):
        answer = client.ask(VERSIONS[0], request_to(path, chat, is_stream), path)
        assert answer.status == 200, answer.body
        return said_in(path, answer.body, is_stream)

    of_chat = ask(CHAT)
    for said in (ask(path), ask(path, is_stream=True)):
        assert replace(said, logprobs=[]) == replace(of_chat, logprobs=[])
        assert said.logprobs == pytest.approx(of_chat.logprobs, abs=1e-5)
        assert said.marks[1:] == (said.marks[1], REQUESTED)


def test_a_last_message_of_the_assistant_is_continued(client, tiny_model):
    ask = {"max_tokens": 8, "temperature": 0}
    turns = [*PLUS["messages"], {"role": "assistant", "content": "3 plus 4 is"}]
    message = client.ask(VERSIONS[0], {"messages": turns, **ask}, MESSAGES_PATH).json()
    text = AutoTokenizer.from_pretrained(tiny_model).decode(message["prompt_token_ids"])
    assert text.endswith("<|im_start|>assistant\n3 plus 4 is")
    count = client.ask(VERSIONS[0], {"messages": turns}, COUNT_TOKENS).json()
    assert count["input_tokens"] == len(message["prompt_token_ids"]) == message["usage"]["input_tokens"]
