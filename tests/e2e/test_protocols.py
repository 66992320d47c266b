"""Responses and Messages with the unmodified SDKs: the same tokens as chat, kept by openpipe-art's capture."""

import json
from pathlib import Path

import anthropic
import httpx
import openai
import pytest
from clients_python import needs_clients, run_client
from helpers import inference_name, register

from tandem.rl.tiny.corpus import ADD_TOOL

QUESTION = {"role": "user", "content": "What is 3 plus 4?"}


@needs_clients
def test_each_protocol_samples_the_tokens_of_chat_and_a_capture_keeps_them(service, http):
    name = inference_name(register(http))
    program = Path(__file__).with_name("protocol_episodes.py")
    arguments = service.url, service.key, name, json.dumps(ADD_TOOL["function"])
    episodes = json.loads(run_client(program, *arguments).splitlines()[-1])
    turns = [QUESTION]
    for index in range(2):
        options = {"model": name, "tools": [ADD_TOOL], "temperature": 0, "max_tokens": 48}
        choice = service.openai().chat.completions.create(messages=turns, **options).choices[0]
        expected = [entry.logprob for entry in choice.logprobs.content]
        for protocol, kept in episodes.items():
            exchange = kept[index]
            assert (exchange["prompt"], exchange["tokens"]) == (choice.prompt_token_ids, choice.token_ids), protocol
            assert exchange["logprobs"] == pytest.approx(expected, abs=1e-5), protocol
            assert (exchange["version"], exchange["model"], exchange["items"]) == (0, name, [0]), protocol
            assert exchange["sampled_with"] == {"temperature": 0}, protocol
            assert exchange["text"] == (choice.message.content or ""), protocol
        turns.append(choice.message.model_dump(exclude_none=True))
        for call in choice.message.tool_calls or ():
            turns.append({"role": "tool", "tool_call_id": call.id, "content": "7"})
    assert len(turns) == 4  # a question, a call, its result and an answer
    for kept in episodes.values():
        first, second = kept
        whole = first["prompt"] + first["tokens"]
        assert second["prompt"][: len(whole)] == whole


def test_errors_are_those_of_the_protocol(service):
    client = anthropic.Anthropic(base_url=service.url, api_key=service.key, max_retries=0)
    ask = {"model": "tandem/tiny", "messages": [QUESTION], "max_tokens": 4}
    assert client.messages.count_tokens(model=ask["model"], messages=ask["messages"]).input_tokens == 14
    with pytest.raises(anthropic.NotFoundError, match="default/tests/absent"):
        client.messages.create(**ask | {"model": "default/tests/absent"})
    with pytest.raises(anthropic.BadRequestError, match="container"):
        client.messages.create(**ask, extra_body={"container": "x"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="tdm_wrong").messages.create(**ask)
    with pytest.raises(openai.BadRequestError) as caught:
        service.openai().responses.create(model="tandem/tiny", input="x", previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError):
        service.openai().responses.retrieve("resp_1")
    elsewhere = httpx.get(f"{service.base_url}/models", headers={"x-api-key": service.key})
    assert elsewhere.status_code == 401  # the header is Anthropic's, and counts on its routes alone


def test_the_newest_sdks_run_tools_without_state_on_the_server(service):
    """By default, Anthropic's tool runner continues a thread that the server holds."""

    def add(a: int, b: int) -> str:
        return str(a + b)

    tool = ADD_TOOL["function"]
    schema, description = tool["parameters"], tool["description"]
    add = anthropic.beta_tool(add, name="add", description=description, input_schema=schema)
    client = anthropic.Anthropic(base_url=service.url, api_key=service.key, max_retries=0)
    options = {"model": "tandem/tiny", "max_tokens": 64, "tools": [add], "messages": [QUESTION]}
    call, answer = client.beta.messages.tool_runner(**options, extra_body={"temperature": 0})
    assert (call.content[-1].type, call.stop_reason, answer.stop_reason) == ("tool_use", "tool_use", "end_turn")
    whole = call.prompt_token_ids + call.token_ids
    assert answer.prompt_token_ids[: len(whole)] == whole
    answer = service.openai().responses.create(
        model="tandem/tiny", input="Hello!", include=["message.output_text.logprobs"], top_logprobs=2, temperature=0
    )
    text, *_ = answer.output[0].content[0].logprobs
    assert bytes(text.bytes).decode() == text.token == "Hello" and len(text.top_logprobs) == 2
