"""The place in the request that vLLM's error is about, also where vLLM names none or answers with a 500."""

import asyncio
import json

import pytest
from asgi_calls import call_app
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tandem.cluster.engine.requests.refusals import explained, most_likely_fault, with_places

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}}


def error(message, status=400, param=None):
    return json.dumps({"error": {"message": message, "type": "x", "param": param, "code": status}}).encode()


@pytest.mark.parametrize(
    ("request_", "path", "status", "message", "param", "place"),
    [
        (SCHEMA, CHAT, 500, "Internal server error", None, "response_format.json_schema.schema"),
        (SCHEMA, CHAT, 400, "Failed to transform json schema into a grammar: x", None, "response_format.json_schema."),
        ({"response_format": {"type": "json_object"}}, CHAT, 500, "x", None, "response_format"),
        ({"structured_outputs": {"regex": "("}}, CHAT, 500, "Internal server error", None, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "("}}, CHAT, 400, "Invalid grammar", None, "structured_outputs.grammar"),
        ({"structured_outputs": {"regex": "a", "json": {}}}, CHAT, 400, "structured", None, "structured_outputs"),
        ({"tools": [{}], "tool_choice": "required"}, CHAT, 500, "Internal server error", None, "tools"),
        ({"structured_outputs": "x"}, CHAT, 500, "'str' object has no attribute 'get'", None, "structured_outputs"),
        ({"response_format": []}, CHAT, 500, "'list' object has no attribute 'get'", None, "response_format"),
        ({"logprobs": True, "top_logprobs": 99}, CHAT, 400, "99 is above 20", "logprobs", "top_logprobs"),
        ({"n": 0}, CHAT, 400, "n must be at least 1, got 0.", None, "n"),
        ({"max_completion_tokens": -1}, CHAT, 400, "max_tokens must be 1", "max_tokens", "max_completion_tokens"),
        ({"chat_template": "{%"}, CHAT, 400, "Chat template is passed with request", None, "chat_template"),
        ({"chat_template_kwargs": {"self": 1}}, CHAT, 400, "values for 'self'", None, "chat_template_kwargs.self"),
        ({"chat_template_kwargs": {"a": 1}}, CHAT, 400, "'int' object isn't iterable", None, "chat_template_kwargs"),
        ({"repetition_detection": {"max_size": -1}}, CHAT, 400, "max_size must be 0", None, "repetition_detection.max"),
        ({"stream": True, "n": 2}, CHAT, 400, "Streaming isn't supported with beam search", None, "stream"),
        ({"messages": [{}, {"tool_calls": "x"}]}, CHAT, 400, "x", "0.FunctionToolCallParam", "messages"),
        ({"messages": [{"content": [{"type": "file"}]}]}, CHAT, 400, "type 'file'", "type", "messages.0.content.0."),
        (
            {"messages": [{}, {"content": [{"type": "text", "text": "x"}, {"type": "image_url"}]}]},
            *(CHAT, 400, "tiny isn't a multimodal model", None, "messages.1.content.1"),
        ),
        ({"messages": []}, CHAT, 400, "maximum context length is 9", "input_text", "messages"),
        ({"use_beam_search": True}, CHAT, 501, "use_beam_search isn't implemented", None, "use_beam_search"),
        ({"temperature": -1}, CHAT, 400, "temperature must be non-negative", "temperature", "temperature"),
        ({"prompt": [[]]}, COMPLETIONS, 400, "x", "body.prompt", "prompt"),
        ({"stop_token_ids": [3, -7]}, CHAT, 400, "stop_token_ids has -7", None, "stop_token_ids.1"),
        ({"logit_bias": {"abc": 1}}, CHAT, 400, "Invalid key 'abc' in logit_bias", None, "logit_bias.abc"),
        ({"prompt": [1, 600]}, COMPLETIONS, 400, "Token id 600 is out of vocabulary", None, "prompt.1"),
        ({"prompt": [[1], [2, 600]]}, COMPLETIONS, 400, "Token id 600 is out of vocabulary", None, "prompt.1.1"),
        ({"max_tokens": 5, "messages": []}, CHAT, 400, "context length exceeded by max_tokens", None, "messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, CHAT, 400, "template failed", None, "messages"),
    ],
)
def test_an_error_names_its_place(request_, path, status, message, param, place):
    answered, content = explained(status, error(message, status, param), path, {"model": "x", **request_})
    assert answered == 400
    found = json.loads(content)["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert (found["param"].startswith(place), found["code"], found["type"]) == (True, 400, "BadRequestError")


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, error("Internal server error", 500)),  # without a grammar, it isn't the request's fault
        (503, error("dead", 503)),
        (404, error("no such model", 404, "model")),
        (400, b"not JSON"),
        (400, b"[]"),
    ],
)
def test_other_errors_pass(status, content):
    assert explained(status, content, CHAT, {"messages": []}) == (status, content)


def test_messages_of_any_size_are_shortened():
    _, content = explained(400, error("x" * 10**6), CHAT, {"messages": []})
    assert len(content) < 1000


def test_answers_pass_and_errors_are_rewritten_whole():
    def app(status, *parts):
        async def app(scope, receive, send):
            headers = [(b"content-type", b"application/json"), (b"content-length", b"1")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            for part in parts[:-1]:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": parts[-1]})

        return app

    async def items(app):
        found = with_places(app, CHAT, SCHEMA)
        (status, _), *chunks = [item async for item in call_app(found, CHAT, [], b"{}")]
        return status, chunks

    assert asyncio.run(items(app(200, b"a", b"b"))) == (200, [b"a", b"b"])
    half = error("Internal server error", 500)
    status, [chunk] = asyncio.run(items(app(500, half[:20], half[20:])))
    assert (status, json.loads(chunk)["error"]["param"]) == (400, "response_format.json_schema.schema")


class Text(BaseModel):
    role: str
    content: str
    name: str | None = None


class Tool(BaseModel):
    role: str
    content: str
    tool_call_id: str


class Body(BaseModel):
    messages: list[Text | Tool]
    n: int = Field(1, ge=1)
    seed: int | None = None


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": 5}]}, "messages.1.content"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        ({"messages": [5]}, "messages.0"),
        ({"messages": {}}, "messages"),
        ({}, "messages"),
        ({"messages": [], "n": 0}, "n"),
        ({"messages": [], "seed": "x"}, "seed"),
        ([], "body"),
    ],
)
def test_the_place_of_an_invalid_field_is_in_the_body(body, place):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Body).validate_python(body)
    errors = [{**one, "loc": ("body", *one["loc"])} for one in caught.value.errors()]
    found, message = most_likely_fault(errors, body)
    assert found == place
    assert "Input should" not in message
