"""Answers of Responses and Messages carry version, name, ids and logprobs in every form."""

import asyncio
import json

import pytest
from openai.types.responses import Response, ResponseCompletedEvent, ResponseCreatedEvent, ResponseTextDeltaEvent
from protocol_answers import events_of
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tandem.cluster.engine.requests.generations import Generation
from tandem.cluster.engine.requests.messages.answers import MessagesAnnotator
from tandem.cluster.engine.requests.responses.answers import ResponsesAnnotator

ENGINES, NAME = "policy-0000", "team/project/agent"
FIRST, SECOND = Generation([1, 2], [5, 6], [-0.25, -9999.0]), Generation([1, 2, 5, 6, 7], [8], [-0.5])
ITEM = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
ITEM["content"] = [{"type": "output_text", "text": "seven", "annotations": []}]
CALL = {"type": "function_call", "call_id": "call_1", "name": "add", "arguments": "{}"}


class Answer(BaseModel):
    """Any answer of vLLM."""

    model_config = ConfigDict(extra="allow")


def annotator(kind, *generations):
    return kind(NAME, ENGINES, 3, {"temperature": 0.5}, list(generations))


def response(status="completed", *output):
    fields = {"id": "resp_1", "created_at": 1, "model": ENGINES, "object": "response", "output": output}
    fields |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": status}
    return Response.model_validate(fields)


def generation(one, *indices):
    tokens = [{"token_id": t, "logprob": p} for t, p in zip(one.token_ids, one.logprobs, strict=True)]
    return {
        "prompt_token_ids": one.prompt_token_ids,
        "output_indices": list(indices),
        "output_tokens": tokens,
        "policy_version": 3,
        "sampled_with": {"temperature": 0.5},
    }


async def parts(*items):
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def streamed(annotator, *items):
    async def collect():
        return b"".join([chunk async for chunk in annotator.stream(parts(*items))])

    content = asyncio.run(collect())
    assert annotator.events(content) is content  # what is sent is annotated once
    return events_of(content)


@pytest.mark.parametrize("status", ["completed", "incomplete"])
@pytest.mark.parametrize("output", [(), (ITEM,), (ITEM, CALL, CALL)], ids=len)
def test_a_response_has_its_generation(status, output):
    answer = json.loads(annotator(ResponsesAnnotator, FIRST).response(response(status, *output)))
    assert answer["token_generations"] == [generation(FIRST, *range(len(output)))]
    assert (answer["model"], answer["policy_version"], answer["store"]) == (NAME, 3, False)
    assert [item["type"] for item in answer["output"]] == [item["type"] for item in output]


def test_items_belong_to_the_last_of_several_generations():
    answer = json.loads(annotator(ResponsesAnnotator, FIRST, SECOND).response(response("completed", ITEM)))
    assert answer["token_generations"] == [generation(FIRST), generation(SECOND, 0)]


def test_each_event_of_a_response_has_name_and_version_and_the_last_one_the_tokens():
    delta = {"type": "response.output_text.delta", "item_id": "msg_1", "output_index": 0, "content_index": 0}
    delta |= {"delta": "seven", "logprobs": [], "sequence_number": 1}
    created = ResponseCreatedEvent(type="response.created", sequence_number=0, response=response("in_progress"))
    done = ResponseCompletedEvent(type="response.completed", sequence_number=2, response=response("completed", ITEM))
    first, second, third = streamed(
        annotator(ResponsesAnnotator, FIRST), created, ResponseTextDeltaEvent.model_validate(delta), done
    )
    assert "token_generations" not in first["response"]
    for event in (first, third):
        assert (event["response"]["model"], event["response"]["policy_version"]) == (NAME, 3)
    assert second == delta
    assert third["response"]["token_generations"] == [generation(FIRST, 0)]


def test_an_error_in_a_stream_of_a_response_is_its_last_event():
    created = ResponseCreatedEvent(type="response.created", sequence_number=0, response=response("in_progress"))
    _, error = streamed(annotator(ResponsesAnnotator), created, ValueError(f"{ENGINES} failed"))
    assert error["message"] == error["error"]["message"] == f"{NAME} failed"
    assert (error["sequence_number"], error["param"]) == (1, None)


def test_the_cause_is_said_where_vllm_fails_to_write_an_error_as_an_event():
    from vllm.entrypoints.openai.responses.protocol import StreamingResponsesResponse

    async def failing():
        yield ResponseCreatedEvent(type="response.created", sequence_number=0, response=response("in_progress"))
        TypeAdapter(StreamingResponsesResponse).validate_json('{"error": {"message": "the engine died", "code": 500}}')

    async def collect():
        return b"".join([chunk async for chunk in annotator(ResponsesAnnotator).stream(failing())])

    assert events_of(asyncio.run(collect()))[-1]["message"] == "the engine died"


MESSAGE = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": ENGINES, "usage": None}
STARTED = {"model": NAME, "prompt_token_ids": [1, 2], "policy_version": 3, "sampled_with": {"temperature": 0.5}}


def test_a_message_has_its_generation():
    answer = json.loads(annotator(MessagesAnnotator, FIRST).response(Answer(**MESSAGE, stop_reason="end_turn")))
    assert answer["token_ids"] == [5, 6] and answer["logprobs"] == [-0.25, -9999.0]
    assert {name: answer[name] for name in STARTED} == STARTED
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("end_turn", None)  # clients read both


def test_a_count_of_tokens_is_passed_on():
    assert json.loads(annotator(MessagesAnnotator).response(Answer(input_tokens=4, other=None))) == {"input_tokens": 4}


def sse(type, **fields):
    return f"event: {type}\ndata: {json.dumps({'type': type, **fields})}\n\n"


def test_events_of_a_message_have_the_fields_where_clients_keep_them():
    block = sse("content_block_delta", index=0, delta={"type": "text_delta", "text": "seven \n\u2028 \u00e9"})
    items = [sse("message_start", message=MESSAGE), block, sse("message_delta", delta={}), sse("message_stop")]
    start, text, delta, stop = streamed(annotator(MessagesAnnotator, FIRST), *items)
    assert start["message"] == MESSAGE | STARTED
    assert f"event: {text['type']}\ndata: {json.dumps(text)}\n\n" == block
    assert delta == {"type": "message_delta", "delta": {}, "token_ids": [5, 6], "logprobs": [-0.25, -9999.0]}
    assert stop == {"type": "message_stop"}


def test_an_error_in_a_stream_of_a_message_has_anthropics_words():
    [event] = streamed(
        annotator(MessagesAnnotator), sse("error", error={"type": "internal_error", "message": f"{ENGINES} failed"})
    )
    assert event == {"type": "error", "error": {"type": "api_error", "message": f"{NAME} failed"}}
