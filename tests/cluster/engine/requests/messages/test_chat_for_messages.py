"""Calls of tools reach Anthropic's clients as objects, whatever the model wrote, and errors keep their words."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from tandem.cluster.engine.requests.messages.chat_for_messages import ChatForMessages, as_object, as_the_protocol_says


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ('{"a": 1}', {"a": 1}),
        ('{"a":1,"b":"}"}', {"a": 1, "b": "}"}),
        ('{"a": 1, "b": [2, 3', {"a": 1, "b": [2, 3]}),
        ('{"a": 1, "b', {"a": 1}),
        ("{", {}),
        ("", {}),
        ("[1]", {}),
        ("5", {}),
        ("null", {}),
        ("no JSON", {}),
    ],
)
def test_arguments_are_an_object(written, read):
    assert json.loads(as_object(written)) == read


def test_arguments_that_are_one_stay_as_they_were_written():
    assert as_object('{ "a":  1.0}') == '{ "a":  1.0}'


def answered(answer):
    async def chat(*arguments):
        assert arguments == ("request", "raw")
        return answer

    return asyncio.run(ChatForMessages(chat)("request", "raw"))


def test_a_whole_answer_is_changed_in_its_calls_alone():
    call = SimpleNamespace(function=SimpleNamespace(name="add", arguments='{"a": 1'))
    answer = SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(tool_calls=[call]))])
    assert answered(answer) is answer and json.loads(call.function.arguments) == {"a": 1}
    error = SimpleNamespace(error="x")
    assert answered(error) is error


def chunk(*calls, content=None):
    delta = {"content": content} if content else {}
    if calls:
        delta["tool_calls"] = [{"index": i, "id": None, "function": {"arguments": text}} for i, text in calls]
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]}, separators=(',', ':'))}\n\n"


def passed_on(*chunks):
    async def collect():
        async def chat(*arguments):
            async def stream():
                for one in chunks:
                    yield one

            return stream()

        return [one async for one in await ChatForMessages(chat)("request", "raw")]

    return asyncio.run(collect())


def arguments_in(chunks):
    found = {}
    for one in chunks:
        for call in json.loads(one.removeprefix("data:"))["choices"][0]["delta"].get("tool_calls", ()):
            found[call["index"]] = found.get(call["index"], "") + call["function"]["arguments"]
    return found


def test_a_stream_passes_objects_in_pieces_and_drops_others():
    text = chunk(content='a "tool_calls":[{ in text')
    pieces = [text, chunk((0, " "), (1, "[1")), chunk((0, '{"a"'), (2, "5")), chunk((1, ", {2}]"), (0, ": 1}"))]
    passed = passed_on(*pieces, "data: [DONE]\n\n")
    assert passed[0] == text and passed[-1] == "data: [DONE]\n\n"
    assert arguments_in(passed[:-1]) == {0: ' {"a": 1}', 1: "", 2: ""}


def test_an_error_in_a_stream_ends_it_with_its_message():
    with pytest.raises(RuntimeError, match="the engine died"):
        passed_on(
            chunk(content="x"), 'data: {"error": {"message": "the engine died", "code": 500}}\n\n', "data: [DONE]"
        )


@pytest.mark.parametrize(("last", "continues"), [("assistant", True), ("user", False)])
@pytest.mark.parametrize(("tools", "choice"), [(None, "none"), (["add"], "auto")])
def test_the_last_turn_and_the_tools_decide_about_the_prompt(last, continues, tools, choice):
    def convert(request, *, merge):
        assert merge
        chat = SimpleNamespace(tools=tools, tool_choice=tools and "auto")
        return SimpleNamespace(**vars(chat), add_generation_prompt=True, continue_final_message=False)

    request = SimpleNamespace(messages=[SimpleNamespace(role="user"), SimpleNamespace(role=last)])
    chat = as_the_protocol_says(convert)(request, merge=True)
    assert (chat.continue_final_message, chat.add_generation_prompt, chat.tool_choice) == (
        continues,
        not continues,
        choice,
    )
