"""Conversations of a model family, each played turn by turn."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import EngineRenderer, Family, Refused, load_with
from playing import Played, Sampled, play, train

from tandem.rl.errors import TrajectoryError
from tandem.rl.tokens.tokenizing import ChatTokenizer

TOOL = {
    "function": {
        "parameters": {"type": "object", "properties": {"where": {"type": "string"}, "a": {"type": "integer"}}},
        "name": "look",
        "strict": True,
    },
    "type": "function",
}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str | None, **extra: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **extra}


def call(index: int, arguments: str) -> dict[str, Any]:
    return {"id": f"call{index:05d}", "type": "function", "function": {"name": "look", "arguments": arguments}}


def result(index: int, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{index:05d}", "content": content}


class Model:
    """A family's template on a tokenizer, in the engine and in training."""

    def __init__(self, family: Family, engine: EngineRenderer, directory: Path) -> None:
        self.family, self.engine, self.directory, self.template = family, engine, directory, family.text
        self.chat = ChatTokenizer(load_with(directory, self.template))
        self.end = self.chat.encode(family.end)
        assert len(self.end) == 1, "the end of a turn is one token"

    def turn(self, text: str, message: dict[str, Any] | None = None, ends: bool = True, **extra: Any) -> Sampled:
        return Sampled(self.chat.encode(text) + self.end * ends, message or assistant(text), **extra)

    def play(self, *turns: Any, **options: Any) -> Played:
        return play(self.engine, self.template, list(turns), options)

    def call_turn(self, calls: list[dict[str, Any]], text: str | None = None) -> Sampled:
        """Return a turn of tool calls, sampled as the template writes them, or as `text`."""
        message = assistant(None, tool_calls=calls)
        request = {"messages": [user("a")], "tools": [TOOL]}
        before = self.chat.decode(self.engine.prompt(self.template, request))
        results = [result(index, "x") for index in range(len(calls))]
        request["messages"] = [user("a"), message, *results]
        written = self.chat.decode(self.engine.prompt(self.template, request))
        rest = written.removeprefix(before) if written.startswith(before) else ""
        return self.turn(rest.partition(self.family.end)[0] if text is None else text, message)


def check_random_turns(model: Model, with_prompts: bool) -> None:
    """Ids at random: other tokens than those of their text, parts of characters, control tokens, no end of a turn."""
    tokenizer = load_with(model.directory, model.template)
    for seed in range(8):
        chance, turns = random.Random(seed), []
        for letter in "abc":
            ids = chance.sample(range(len(tokenizer)), 6) + model.end * (chance.random() < 0.7)
            turns += [user(letter), Sampled(ids, assistant(tokenizer.decode(ids, skip_special_tokens=True)))]
        played = model.play(*turns)
        if with_prompts or not model.family.writes_date:
            train(played, model.chat, with_prompts)
        else:
            with pytest.raises(TrajectoryError, match="current date"):
                train(played, model.chat, with_prompts)


def thinking(model: Model) -> Played:
    return model.play(user("a"), model.turn(model.family.thought + "yes"), user("b"), model.turn("no"))


def thinking_kept(model: Model) -> Played:
    kept = {"preserve_thinking": True, "clear_thinking": False, "truncate_history_thinking": False}
    turns = user("a"), model.turn(model.family.thought + "yes"), user("b"), model.turn("no")
    return model.play(*turns, chat_template_kwargs=kept)


def reasoning_sent_back(model: Model) -> Played:
    message = assistant("yes", reasoning="because")
    return model.play(user("a"), model.turn(model.family.thought + "yes", message), user("b"), model.turn("no"))


def tool_calls(model: Model) -> Played:
    calls = [call(0, '{"where": "q"}'), call(1, '{"a": 1}')]
    turns = user("a"), model.call_turn(calls), result(0, "x"), result(1, "y"), model.turn("no")
    return model.play(*turns, tools=[TOOL])


def written_otherwise(model: Model) -> Played:
    """One call, with other spaces and another order of keys than the template's."""
    calls = [call(0, '{"where":"q"}')]
    text = '<tool_call>{"arguments":{"where":"q"},"name":"look"}</tool_call>'
    turns = user("a"), model.call_turn(calls, text), result(0, "x"), model.turn("no")
    return model.play(*turns, tools=[TOOL])


def system(model: Model) -> Played:
    turns = user("a"), model.turn("yes"), user("b"), model.turn("no")
    return model.play({"role": "system", "content": "rules"}, *turns)


def developer(model: Model) -> Played:
    turns = user("a"), model.turn("yes"), user("b"), model.turn("no")
    return model.play({"role": "developer", "content": "rules"}, *turns)


def spaces(model: Model) -> Played:
    return model.play(user("a"), model.turn("  yes \n"), user("b"), model.turn("no"))


def empty(model: Model) -> Played:
    return model.play(user("a"), model.turn(""), user("b"), model.turn("no"))


def cut(model: Model) -> Played:
    """The turn was cut by max_tokens, so that it has no end."""
    return model.play(user("a"), model.turn("yes", ends=False), user("b"), model.turn("no"))


SCENARIOS: tuple[Callable[[Model], Played], ...] = (
    *(system, developer, thinking, thinking_kept, reasoning_sent_back),
    *(tool_calls, written_otherwise, spaces, empty, cut),
)


def outcome(model: Model, scenario: Callable[[Model], Played]) -> str:
    """Return what becomes of a conversation, after checking that it's exact."""
    try:
        played = scenario(model)
    except Refused:
        return "4xx"
    sequences = train(played, model.chat)
    try:
        assert len(train(played, model.chat, with_prompts=False)) == len(sequences)
    except TrajectoryError as error:
        assert model.family.writes_date or "reasoning is separate" in error.reason
    return "whole" if len(sequences) == 1 else "split"
