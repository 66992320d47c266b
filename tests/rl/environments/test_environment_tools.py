import asyncio
from typing import Any

import pytest
from scripted_chat import call, turn

from tandem.rl.environments.tools import ToolError, ToolResult, call_tools


def divide(a: int, b: int) -> float:
    if b == 0:
        raise ToolError("b mustn't be 0.")
    return a / b


async def lookup(word: str) -> str:
    await asyncio.sleep(0)
    return f"{word} is a word"


def answers(*calls: dict[str, Any]) -> list[ToolResult]:
    return asyncio.run(call_tools(turn(None, *calls), {"divide": divide, "lookup": lookup}))


def test_two_calls_of_one_turn_are_answered_in_order() -> None:
    first, second = answers(call("divide", {"a": 3, "b": 4}, "one"), call("lookup", {"word": "cat"}, "two"))
    assert first == ToolResult({"role": "tool", "tool_call_id": "one", "content": "0.75"}, value=0.75)
    assert second == ToolResult({"role": "tool", "tool_call_id": "two", "content": "cat is a word"}, "cat is a word")


def test_a_turn_without_calls_has_no_answers() -> None:
    assert asyncio.run(call_tools({"message": {"role": "assistant", "content": "7"}}, {"divide": divide})) == []
    assert asyncio.run(call_tools({"message": {"role": "assistant", "tool_calls": None}}, {"divide": divide})) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (call("multiply", {"a": 1}), "There is no tool 'multiply'. The tools are: divide, lookup."),
        (call("divide", '{"a": 1, "b": '), "The arguments of divide aren't valid JSON"),
        (call("divide", "[1, 2]"), "must be a JSON object"),
        (call("divide", ""), "missing a required argument: 'a'"),
        (call("divide", {"a": 1, "b": 2, "c": 3}), "unexpected keyword argument 'c'"),
        (call("divide", {"a": 1, "b": 0}), "b mustn't be 0."),
        ({"id": "call_0", "type": "custom", "custom": {"name": "grep", "input": "x"}}, "There is no tool 'grep'"),
    ],
)
def test_what_the_model_got_wrong_is_said_to_the_model(wrong: dict[str, Any], said: str) -> None:
    (answer,) = answers(wrong)
    assert answer.value is None
    assert said in answer.error
    assert answer.message == {"role": "tool", "tool_call_id": "call_0", "content": f"Error: {answer.error}"}


def test_a_failed_call_does_not_keep_the_others_from_being_answered() -> None:
    wrong, right = answers(call("divide", "{", "one"), call("divide", {"a": 8, "b": 2}, "two"))
    assert wrong.error and right.error is None and right.value == 4.0


def test_a_fault_of_the_tool_itself_goes_through() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        answers(call("divide", {"a": "3", "b": 4}))
