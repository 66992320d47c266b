"""Task files accept exactly the sampling fields that vLLM accepts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tandem.runs.sampling import MAX_TEMPERATURE, REFUSED, Sampling, SamplingFields

IGNORED = {"return_token_offsets", "mm_payload", "return_mm_kwargs"}
"""Fields of vLLM's other routes."""

NUMBERS = [-(2**63) - 1, -2.1, -2, -1.5, -1, -0.0, 0, 1e-9, 0.5, 1, 1.5, 2, 2.5, 100, 2**63, math.nan, math.inf]
VALUES: list[Any] = [
    *NUMBERS,
    None,
    True,
    "",
    "x",
    "1",
    [],
    [1],
    ["x"],
    [""],
    ["x"] * 4,
    ["x"] * 5,
    [-1],
    [1] * 129,
    {},
]
VALUES += [{"x": 1}, {"1": 1}, {"1": math.nan}, {"regex": "a"}, {"regex": "a", "json": {}}, {"type": "text"}]
DEEPER = {"response_format", "tool_choice", "repetition_detection", "structured_outputs", "vllm_xargs"}
"""Objects whose contents only the engine checks."""


def engine_accepts(field: str, value: Any) -> bool:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    body = {"messages": [{"role": "user", "content": "hi"}], "model": "m", "logprobs": True, field: value}
    try:
        ChatCompletionRequest.model_validate(body).to_sampling_params(100, {})
    except Exception:  # vLLM answers all of them with a 400
        return False
    return True


def task_accepts(field: str, value: Any) -> bool:
    try:
        TypeAdapter(Sampling).validate_python({field: value})
    except ValidationError:
        return False
    return True


def test_every_field_of_the_engine_is_known_or_refused():
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

    known = set(SamplingFields.__annotations__) | set(REFUSED) | IGNORED
    assert known == set(ChatCompletionRequest.model_fields)


@pytest.mark.parametrize("field", sorted(set(SamplingFields.__annotations__) - DEEPER))
def test_a_value_is_accepted_as_the_engine_accepts_it(field):
    differing = [value for value in VALUES if task_accepts(field, value) != engine_accepts(field, value)]
    assert [value for value in differing if not is_refused_later(field, value)] == []


def is_refused_later(field: str, value: Any) -> bool:
    """Return True for values that the service or the engine rejects after these checks of vLLM."""
    numbers = value.values() if isinstance(value, dict) else [value]
    is_json = all(math.isfinite(number) and number < 2**63 for number in numbers if isinstance(number, int | float))
    return not is_json or (field, value) in [("allowed_token_ids", []), ("logprob_token_ids", [1] * 129)]


@pytest.mark.parametrize("field", sorted(DEEPER))
def test_nothing_that_the_engine_accepts_is_refused(field):
    assert [value for value in VALUES if engine_accepts(field, value) and not task_accepts(field, value)] == []


def test_the_temperature_has_the_engines_bounds():
    assert engine_accepts("temperature", MAX_TEMPERATURE) and not engine_accepts("temperature", MAX_TEMPERATURE + 1e-9)
    assert engine_accepts("temperature", 0) and not engine_accepts("temperature", -1e-9)
