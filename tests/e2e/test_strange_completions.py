"""Strange requests to a running service: answers name the field, and completions of another model stay as they are."""

import json
import socket
from http.client import HTTPResponse

import pytest

BASE = "tandem/tiny"
MESSAGES = [{"role": "user", "content": "Which is the largest: 3, 17 or 8?"}]


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def pattern(text):
    return schema({"type": "object", "properties": {"a": {"type": "string", "pattern": text}}, "required": ["a"]})


def outputs(**kinds):
    return {"structured_outputs": kinds}


def tool(parameters):
    return {
        "tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}],
        "tool_choice": "required",
    }


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


FORMAT = "response_format"
REFUSED = {  # fields of the request, and the start of the place that the answer names
    "an unclosed pattern": (pattern("("), FORMAT),
    "a backslash as the pattern": (pattern("\\"), FORMAT),
    "a class of characters": (pattern("\\p{L}+"), FORMAT),
    "a zero byte in a pattern": (pattern("a\x00b"), FORMAT),
    "a backward reference": (pattern(r"(a)\1"), FORMAT),
    "a range backwards": (pattern("[z-a]"), FORMAT),
    "a repetition of 20 digits": (pattern("a{99999999999999999999}"), FORMAT),
    "a pattern of a megabyte": (pattern("a" * 10**6), FORMAT),
    "a number as the pattern": (pattern(5), FORMAT),
    "an unknown type": (schema({"type": "strange"}), FORMAT),
    "a reference to nothing": (schema({"$ref": "#/$defs/none"}), FORMAT),
    "a list as the schema": (schema([]), FORMAT),
    "no member of an enumeration": (schema({"enum": []}), FORMAT),
    "20000 members of an enumeration": (schema({"enum": [f"v{i}" for i in range(20_000)]}), FORMAT),
    "a negative length": (schema({"type": "string", "minLength": -1}), FORMAT),
    "an unknown format": ({"response_format": {"type": "xml"}}, FORMAT),
    "a format of no type": ({"response_format": {}}, FORMAT),
    "two kinds of outputs": (outputs(regex="a", json={}), "structured_outputs"),
    "a broken grammar": (outputs(grammar='root ::= "a'), "structured_outputs"),
    "no grammar": (outputs(grammar="this is no grammar"), "structured_outputs"),
    "a grammar of an undefined rule": (outputs(grammar="root ::= none"), "structured_outputs"),
    "a broken expression": (outputs(regex="("), "structured_outputs"),
    "an expression that looks ahead": (outputs(regex="(?!a)b"), "structured_outputs"),
    "an expression of a megabyte": (outputs(regex="ab" * 500_000), "structured_outputs"),
    "a number as the expression": (outputs(regex=5), "structured_outputs"),
    "no choice": (outputs(choice=[]), "structured_outputs"),
    "50000 choices": (outputs(choice=[f"c{i}" for i in range(50_000)]), "structured_outputs"),
    "a broken schema in text": (outputs(json="{"), "structured_outputs"),
    "a list as a schema in text": (outputs(json="[1]"), "structured_outputs"),
    "outputs as text": ({"structured_outputs": "x"}, "structured_outputs"),
    "a seed of 65 bits": ({"seed": 2**64}, "seed"),
    "a seed in words": ({"seed": "x"}, "seed"),
    "an enormous temperature": ({"temperature": 10**400}, "temperature"),
    "a biased word": ({"logit_bias": {"abc": 1}}, "logit_bias"),
    "a biased token of no vocabulary": ({"logit_bias": {"999999": 1}}, "logit_bias"),
    "a negative stop token": ({"stop_token_ids": ["x"]}, "stop_token_ids.0"),
    "a number in a list of stops": ({"stop": ["a", 5]}, "stop"),
    "no choices at all": ({"n": 0}, "n"),
    "negative tokens": ({"max_tokens": -1}, "max_tokens"),
    "a million logprobs": ({"logprobs": True, "top_logprobs": 10**6}, "top_logprobs"),
    "options of a stream that is none": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "a template": ({"chat_template": "{% for"}, "chat_template"),
    "arguments of a template in a list": ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
    "messages as text": ({"messages": "x"}, "messages"),
    "a number as a message": ({"messages": [*MESSAGES, 5]}, "messages"),
    "a number as content": ({"messages": [*MESSAGES, {"role": "user", "content": 5}]}, "messages"),
    "an image of an internal address": (
        user({"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}}),
        "messages",
    ),
    "an image of a file": (user({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "messages"),
    "a part of no kind": (user({"type": "text", "text": "x"}, {"type": "x"}), "messages"),
}
PROMPTS = {
    "no prompt": ({}, "prompt"),
    "a number": ({"prompt": 5}, "prompt"),
    "an object": ({"prompt": {}}, "prompt"),
    "a negative token": ({"prompt": [1, -1]}, "prompt"),
    "a token of no vocabulary": ({"prompt": [1, 10**6]}, "prompt"),
    "a token of 40 bits": ({"prompt": [2**40]}, "prompt"),
    "a fraction": ({"prompt": [1.5]}, "prompt"),
    "more tokens than fit": ({"prompt": [1] * 100_000}, "prompt"),
    "embeddings": ({"prompt": None, "prompt_embeds": "AAAA"}, "prompt"),
}
ODD = {  # answered in either way
    "an expression that explodes": outputs(regex="((a{1,1000}){1,1000}){1,1000}"),
    "a pattern that explodes": pattern("(a+)+$"),
    "a schema that contains itself": schema({"$defs": {"n": {"$ref": "#/$defs/n"}}, "$ref": "#/$defs/n"}),
    "an endless grammar": outputs(grammar="root ::= root"),
    "a number that repeats nothing": {"repetition_penalty": 1e-30, "frequency_penalty": 2},
    "forbidden tokens": {"logit_bias": {str(token): -100 for token in range(400)}},
    "a tool with a broken pattern": tool({"properties": {"a": {"type": "string", "pattern": "("}}}),
    "a tool of an unknown type": tool({"type": "strange"}),
    "an id of two lines": {"request_id": "a\nb\x00é"},
    "a strange user": {"user": "\U0001f600" * 1000, "metadata": {"a": "b"}, "priority": -5},
}


@pytest.fixture
def canary(http):
    """A function that asks another model and checks that it answers as at first."""
    body = {"project": "strange", "name": "canary", "base_model": BASE, "return_existing": True}
    model = http.post("/preview/models", json=body).json()
    name = f"{model['entity']}/strange/canary"

    def ask():
        request = {"model": name, "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
        response = http.post("/chat/completions", json=request, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["token_ids"]

    first = ask()

    def check():
        assert ask() == first

    return check


def assert_refused(response, place):
    assert response.status_code in (400, 422), response.text[:500]
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert error["param"].removeprefix("body.").startswith(place), error
    assert len(error["message"]) < 2000


def test_a_refused_completion_names_the_field_and_disturbs_no_other(http, canary):
    for changes, place in REFUSED.values():
        request = {"model": BASE, "messages": MESSAGES, "max_tokens": 4, **changes}
        assert_refused(http.post("/chat/completions", json=request, timeout=60), place)
        canary()
    for changes, place in PROMPTS.values():
        request = {"model": BASE, "max_tokens": 4, **changes}
        assert_refused(http.post("/completions", json=request, timeout=60), place)
        canary()


def test_an_odd_completion_is_answered_in_time_and_disturbs_no_other(http, canary):
    for changes in ODD.values():
        request = {"model": BASE, "messages": MESSAGES, "max_tokens": 4, **changes}
        response = http.post("/chat/completions", json=request, timeout=60)
        assert response.status_code in (200, 400, 422), (changes, response.text)
        canary()


@pytest.mark.parametrize("id", [b"\xe4\xf6\xff", "\U0001f600".encode(), b"x" * 10_000, b"", b"a\tb", b"plain-1"])
def test_an_id_of_any_bytes_gets_an_answer_with_a_printable_one(service, canary, id):
    host, port = service.url.removeprefix("http://").split(":")
    body = json.dumps({"model": BASE, "prompt": "x", "max_tokens": 1}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.key}\r\n"
    head += f"Content-Length: {len(body)}"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\nX-Request-Id: " + id + b"\r\n\r\n" + body)
        response = HTTPResponse(connection)
        response.begin()
        assert response.status == 200, response.read()
        [answered] = response.headers.get_all("x-request-id")
    assert answered.isascii() and answered.isprintable() and 0 < len(answered) <= 128
    assert (answered == id.decode("latin-1")) == (id == b"plain-1")
    canary()


def test_the_service_says_that_it_is_ready(http, service):
    response = http.get(f"{service.url}/ready")
    assert (response.status_code, response.json()) == (200, {"status": "ready", "missing": []})
