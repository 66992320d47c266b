"""Unmodified SDKs inside a capture: every exchange of each protocol is recorded whole, and for its own rollout."""

import asyncio
import json
import threading

import anthropic
import httpx
import httpx2
import openai
import pytest
from langchain_openai import ChatOpenAI
from model_endpoint import Endpoint, error, running
from waiting import wait_until

from tandem.client import Client, NothingCapturedError, capture, no_capture, recorded

MODEL = "e/p/agent"
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
ANTHROPIC_TOOLS = [{"name": "add", "input_schema": {"type": "object"}}]


@pytest.fixture(scope="module")
def server():
    with running(Endpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def endpoint(server):
    server.answers, server.requests, server.break_off, server.zip_answers = [], [], False, False
    server.may_continue.set()
    return server


@pytest.fixture
def sdk(endpoint):
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k", max_retries=1) as client:
        yield client


def user(text):
    return [{"role": "user", "content": text}]


def chat(sdk, text="hello", **options):
    return sdk.chat.completions.create(model=MODEL, messages=user(text), **options)


def only(rollout, protocol):
    """The one exchange that was recorded."""
    exchanges = rollout.exchanges
    assert [*exchanges] == [protocol] and len(exchanges[protocol]) == 1 and rollout.not_recorded == {}
    return exchanges[protocol][0]


def whole_and_streamed(protocol, ask):
    """Ask the same without and with a stream, and return both recorded exchanges."""
    found = []
    for stream in (False, True):
        with capture() as rollout:
            ask(stream)
        found.append(only(rollout, protocol))
    whole, streamed = found
    assert streamed["request"] == {**whole["request"], "stream": True} | (
        {"stream_options": streamed["request"]["stream_options"]} if "stream_options" in streamed["request"] else {}
    )
    assert whole["model"] == MODEL and whole["start_time"] <= whole["end_time"]
    return whole["response"], streamed["response"]


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_chat_is_recorded_as_it_was_answered_and_a_stream_as_if_it_was_none(sdk, tools):
    def ask(stream):
        options = {"tools": tools} if tools else {}
        answer = chat(sdk, stream=stream, **options) if stream else chat(sdk, **options)
        return list(answer) if stream else answer

    whole, streamed = whole_and_streamed("chat_completions", ask)
    assert streamed == whole
    choice = whole["choices"][0]
    assert (choice["token_ids"], choice["prompt_token_ids"], choice["policy_version"]) == ([7, 8], [1, 2, 3], 4)
    assert len(choice["logprobs"]["content"]) == 2
    assert (choice["message"].get("tool_calls") is not None) == bool(tools)


def test_text_completions_are_recorded(sdk):
    def ask(stream):
        answer = sdk.completions.create(model=MODEL, prompt="hello", **({"stream": True} if stream else {}))
        return list(answer) if stream else answer

    whole, streamed = whole_and_streamed("completions", ask)
    assert streamed == whole and whole["choices"][0]["token_ids"] == [7, 8]


def test_responses_are_recorded(sdk):
    def ask(stream):
        answer = sdk.responses.create(model=MODEL, input="hello", **({"stream": True} if stream else {}))
        return list(answer) if stream else answer

    whole, streamed = whole_and_streamed("responses", ask)
    assert streamed == whole and whole["token_generations"][0]["prompt_token_ids"] == [1, 2, 3]


def test_messages_of_the_anthropic_client_are_recorded_over_httpx2(endpoint):
    client = anthropic.Anthropic(base_url=endpoint.url, api_key="k")
    options = {"model": MODEL, "max_tokens": 8, "messages": user("hello"), "tools": ANTHROPIC_TOOLS}

    def ask(stream):
        if not stream:
            return client.messages.create(**options)
        with client.messages.stream(**options) as events:
            return events.get_final_message()

    whole, streamed = whole_and_streamed("messages", ask)
    assert streamed == whole
    assert (whole["token_ids"], whole["logprobs"], whole["policy_version"]) == ([7, 8], [-0.5, -0.25], 4)
    assert whole["content"][1]["input"] == {"a": 1}


def test_langchain_is_recorded(endpoint):
    model = ChatOpenAI(model=MODEL, base_url=f"{endpoint.url}/v1", api_key="k")
    with capture() as rollout:
        model.invoke("hello")
        list(model.stream("again"))
        asyncio.run(model.ainvoke("and again"))
    texts = [e["response"]["choices"][0]["message"]["content"] for e in rollout.exchanges["chat_completions"]]
    assert texts == ["hello", "again", "and again"]


def test_rollouts_at_the_same_time_stay_apart(endpoint):
    async def rollout(client, number):
        with capture() as captured:
            await chat(client, f"task {number}")
            stream = await chat(client, f"task {number}", stream=True)
            async for _ in stream:
                await asyncio.sleep(0)
            await asyncio.gather(chat(client, f"task {number}"), asyncio.to_thread(in_thread, number))
        return captured

    def in_thread(number):
        with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k") as client:
            chat(client, f"task {number}")

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="k") as client:
            return await asyncio.gather(*(rollout(client, number) for number in range(16)))

    for number, captured in enumerate(asyncio.run(run())):
        exchanges = captured.exchanges["chat_completions"]
        assert [e["request"]["messages"][0]["content"] for e in exchanges] == [f"task {number}"] * 4
        assert [e["start_time"] for e in exchanges] == sorted(e["start_time"] for e in exchanges)


def test_errors_are_counted_and_their_retries_recorded(endpoint, sdk):
    endpoint.answers = [error(429)]
    with capture() as rollout:
        chat(sdk)
        with pytest.raises(openai.BadRequestError):
            endpoint.answers = [error(400)]
            chat(sdk)
        with pytest.raises(openai.APIConnectionError):
            chat(openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k", max_retries=0))
    assert len(rollout.exchanges["chat_completions"]) == 1
    assert rollout.not_recorded == {"status 429": 1, "status 400": 1, "no answer": 1}


def test_a_stream_that_breaks_off_or_is_left_is_counted(endpoint, sdk):
    endpoint.break_off = True
    with capture() as rollout:
        list(chat(sdk, stream=True))
        endpoint.break_off = False
        with chat(sdk, stream=True) as stream:
            next(iter(stream))
    assert rollout.exchanges == {} and rollout.not_recorded == {"aborted": 2}
    with pytest.raises(NothingCapturedError, match="2 aborted"):
        rollout.trajectory()


def test_a_stream_whose_last_event_was_read_needs_no_close(endpoint):
    with capture() as rollout, httpx.Client() as http:
        body = {"model": MODEL, "messages": user("hello"), "stream": True}
        request = http.build_request("POST", f"{endpoint.url}/v1/chat/completions", json=body)
        lines = http.send(request, stream=True).iter_lines()
        for line in lines:
            if line == "data: [DONE]":
                break
        next(lines)  # the line that ends the event
        exchange = only(rollout, "chat_completions")
    assert exchange["response"]["choices"][0]["message"]["content"] == "hello"


def test_events_reach_the_agent_before_the_stream_ends(endpoint, sdk):
    endpoint.may_continue.clear()
    with capture() as rollout:
        stream = iter(chat(sdk, stream=True))
        next(stream)  # this would hang if the capture read first
        assert rollout.exchanges == {} and rollout.not_recorded == {"aborted": 1}  # as far as anybody knows
        endpoint.may_continue.set()
        list(stream)
    only(rollout, "chat_completions")


def test_compressed_answers_are_recorded(endpoint, sdk):
    endpoint.zip_answers = True
    with capture() as rollout:
        assert chat(sdk).choices[0].message.content == "hello"
        with httpx.stream("POST", f"{endpoint.url}/v1/chat/completions", json=endpoint.requests[0]) as response:
            response.read()
    assert [e["response"]["choices"][0]["token_ids"] for e in rollout.exchanges["chat_completions"]] == [[7, 8]] * 2


def test_parts_can_be_left_out_and_captures_nested(sdk):
    with capture() as outer:
        chat(sdk, "first")
        with no_capture():
            chat(sdk, "judge")
        with capture() as inner:
            chat(sdk, "second")
        chat(sdk, "third")
    chat(sdk, "after")
    contents = [
        [e["request"]["messages"][0]["content"] for e in rollout.exchanges["chat_completions"]]
        for rollout in (outer, inner)
    ]
    assert contents == [["first", "third"], ["second"]]


def test_nothing_stays_patched():
    clients = [httpx.Client, httpx.AsyncClient, httpx2.Client, httpx2.AsyncClient]
    before = [client.send for client in clients]
    inside, may_end = threading.Event(), threading.Event()

    def beside():
        with capture():
            inside.set()
            may_end.wait()

    thread = threading.Thread(target=beside)
    thread.start()
    inside.wait()
    with capture():
        assert all(client.send is not original for client, original in zip(clients, before, strict=True))
    may_end.set()
    thread.join()
    assert [client.send for client in clients] == before
    with capture(patch=False):
        assert [client.send for client in clients] == before


@pytest.mark.parametrize("patch", [False, True])
def test_a_prepared_client_needs_no_patch_and_records_once(endpoint, patch):
    http = recorded(openai.DefaultHttpxClient())
    with openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k", http_client=http) as client:
        with capture(patch=patch) as rollout:
            endpoint.answers = [error(500)]
            chat(client)
            list(chat(client, stream=True))
    assert len(rollout.exchanges["chat_completions"]) == 2
    assert rollout.not_recorded == {"status 500": 1}


def test_prepared_async_clients_of_both_libraries(endpoint):
    async def run():
        with capture(patch=False) as rollout:
            http = recorded(httpx.AsyncClient())
            async with openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="k", http_client=http) as client:
                await chat(client)
                async for _ in await chat(client, stream=True):
                    pass
            http2 = recorded(httpx2.AsyncClient())
            async with anthropic.AsyncAnthropic(base_url=endpoint.url, api_key="k", http_client=http2) as client:
                await client.messages.create(model=MODEL, max_tokens=8, messages=user("hello"))
        return rollout

    exchanges = asyncio.run(run()).exchanges
    assert {name: len(found) for name, found in exchanges.items()} == {"chat_completions": 2, "messages": 1}
    with pytest.raises(TypeError, match="httpx"):
        recorded(object())


def test_the_rollout_of_a_request_can_be_chosen_by_its_headers(endpoint):
    with capture(patch=False) as one, capture(patch=False) as two:
        rollouts = {"one": one, "two": two}
    http = recorded(httpx.Client(), lambda request: rollouts.get(request.headers.get("x-session-id")))
    with http:
        for session in ("one", "two", "two", "unknown"):
            body = {"model": MODEL, "messages": user(session)}
            http.post(f"{endpoint.url}/v1/chat/completions", json=body, headers={"x-session-id": session})
    assert [len(r.exchanges["chat_completions"]) for r in (one, two)] == [1, 2]


def test_a_rollout_is_posted_as_a_trajectory(network, url):
    posted = []

    async def answer(scope, receive, send):
        message = await receive()
        posted.append(json.loads(message["body"]))
        start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
        await send(start)
        await send({"type": "http.response.body", "body": b'{"id": "job"}'})

    network.answers.append(answer)
    with running(Endpoint()) as endpoint, Client(url, "tdm_key") as client:
        with client.capture() as rollout:
            chat(openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="k"))
        rollout.reward, rollout.metrics = 1.5, {"turns": 1}
        assert client.train("model-id", [{"trajectories": [rollout]}]) == "job"
    wait_until(lambda: posted)
    [trajectory] = posted[0]["trajectory_groups"][0]["trajectories"]
    assert trajectory == {"exchanges": rollout.exchanges, "reward": 1.5, "metrics": {"turns": 1}}
