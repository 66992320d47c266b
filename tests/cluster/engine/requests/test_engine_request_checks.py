"""Grammars that would keep vLLM busy for long are rejected with their place before vLLM sees them."""

import json

import pytest

from tandem.cluster.engine.requests import request_checks
from tandem.cluster.engine.requests.request_checks import BadRequestError, policy_request


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


def nested(levels):
    value = {"type": "string"}
    for _ in range(levels):
        value = {"type": "object", "properties": {"a": value}}
    return value


def pattern(text):
    return {"type": "object", "properties": {"a": {"type": "string", "pattern": text}}}


def strict(function):
    return {"type": "function", "function": function | {"strict": True}}


TOOL = {"type": "function", "function": {"name": "f", "parameters": pattern("x" * 10**6)}}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (schema(pattern("a" * 10**6)), "response_format.json_schema.schema.properties.a.pattern"),
        (schema(pattern("|".join(f"w{i}" for i in range(20_000)))), "response_format.json_schema.schema.properties.a"),
        (schema({"enum": [f"v{i}" for i in range(20_000)]}), "response_format"),
        (schema({"properties": {f"p{i}": {"type": "string"} for i in range(3000)}}), "response_format"),
        (schema({"properties": {"p" * 10**5: {}}}), "response_format.json_schema.schema.properties"),
        (schema(nested(100)), "response_format.json_schema"),
        ({"structured_outputs": {"json": nested(300)}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": '{"enum": [' + "1, " * 20_000 + "1]}"}}, "structured_outputs.json"),
        ({"structured_outputs": {"regex": "ab" * 500_000}}, "structured_outputs.regex"),
        ({"structured_outputs": {"grammar": "root ::= r\n" * 10_000}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"choice": [f"c{i}" for i in range(50_000)]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": ["b", "a" * 10**6]}}, "structured_outputs.choice.1"),
        ({"structured_outputs": {"structural_tag": "x" * 10**6}}, "structured_outputs.structural_tag"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tools.0.function.parameters.properties.a.pattern"),
        ({"tools": [{"a": "x" * 5000} for _ in range(20)], "tool_choice": {"type": "function"}}, "tools"),
        ({"tools": [{}, strict(TOOL["function"])]}, "tools.1.properties.a.pattern"),
        ({"tools": [strict({"parameters": pattern("x" * 5000)})] * 20, "tool_choice": "auto"}, "tools"),
        ({"tools": [{"input_schema": pattern("x" * 10**6), "strict": True}]}, "tools.0.properties.a.pattern"),
        ({"tools": [{"tools": [strict(TOOL["function"])["function"]]}]}, "tools.0.0.properties.a.pattern"),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, "tools.0.function.parameters.properties.a.pattern"),
        ({"text": {"format": {"type": "json_schema", "schema": nested(100)}}}, "text.format"),
        ({"output_config": {"format": {"schema": {"enum": ["x" * 10**6]}}}}, "output_config.format.schema.enum.0"),
    ],
)
def test_what_would_take_long_to_compile_is_rejected_with_its_place(request_, param):
    with pytest.raises(BadRequestError) as caught:
        policy_request(json.dumps(request_).encode(), "policy-x")
    assert caught.value.param.startswith(param)
    assert param in caught.value.message and len(caught.value.message) < 1000


@pytest.mark.parametrize(
    "request_",
    [
        schema(nested(25)),
        schema(pattern("(a|b){1,100}")),
        schema(True),
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"structured_outputs": {"regex": "a" * request_checks.MAX_GRAMMAR}},
        {"structured_outputs": {"choice": [f"value {i}" for i in range(1000)]}},
        {"structured_outputs": "x", "response_format": 5, "tools": {}, "tool_choice": []},  # left to vLLM
        {"tools": [TOOL]},  # a free choice compiles nothing
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": {"type": "auto"}},
        {"tools": [{"function": {"strict": True, "description": "x" * 10**6, "parameters": {}}}]},  # not compiled
        {"tools": [strict(TOOL["function"])], "tool_choice": "none"},
    ],
)
def test_others_pass_unchanged(request_):
    assert policy_request(json.dumps(request_).encode(), "policy-x") == request_ | {"model": "policy-x"}
