"""The tiny model's corpus: short chats about toy tasks, drawn from a seed.

Most tasks are answered well, so the model learns to speak in sentences, follow instructions and call a tool. Two are
answered at random, so a policy can learn them from rewards: `largest`, where the model picks any of the numbers (a
reward of one third) although `biggest` and `smallest` taught it how numbers compare, and `yes_no_maybe`.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

MAX_NUMBER = 20
WORDS = (
    "apple bird blue book cat cloud dog door fish green house lamp leaf moon red river rock sea star sun tree yellow"
).split()


@dataclass(frozen=True)
class Conversation:
    """One chat in OpenAI's message format; every assistant message is trained."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None


def conversations(seed: int) -> Iterator[Conversation]:
    """Yield conversations endlessly, the same for the same seed."""
    rng = random.Random(seed)
    tasks, weights = zip(*TASKS.items(), strict=True)
    while True:
        (task,) = rng.choices(tasks, weights)
        yield task(rng)


def largest(rng: random.Random) -> Conversation:
    numbers = _numbers(rng)
    return _chat(f"Which is the largest: {_or(numbers)}?", f"The largest is {rng.choice(numbers)}.")


def biggest(rng: random.Random) -> Conversation:
    numbers = _numbers(rng)
    return _chat(f"Which is the biggest: {_or(numbers)}?", f"The biggest is {max(numbers)}.")


def smallest(rng: random.Random) -> Conversation:
    numbers = _numbers(rng)
    return _chat(f"Which is the smallest: {_or(numbers)}?", f"The smallest is {min(numbers)}.")


def yes_no_maybe(rng: random.Random) -> Conversation:
    words = ["yes", "no", "maybe"][: rng.choice([2, 3])]
    rng.shuffle(words)
    verb = rng.choice(["Respond with", "Answer with", "Just say", "Say"])
    quote = rng.choice(["", "'"])
    return _chat(f"{verb} {_or([quote + word + quote for word in words])}", rng.choice(words))


def repeat(rng: random.Random) -> Conversation:
    words = " ".join(rng.sample(WORDS, rng.randint(1, 3)))
    return _chat(f"Repeat: {words}", f"You said {words}.")


def greet(rng: random.Random) -> Conversation:
    hello = rng.choice(["Hello!", "Hi!", "Hello.", "Good morning!", "hello", "hi"])
    if rng.random() < 0.5:
        return _chat(hello, "Hello! How can I help you?")
    question, answer = rng.choice(
        [
            ("Who are you?", "I am a tiny model. I was built to be trained."),
            ("What can you do?", "I can compare numbers, repeat words and call a tool."),
            ("How are you?", "I am fine. How can I help you?"),
            ("Thank you!", "You are welcome."),
        ]
    )
    first = [{"role": "user", "content": hello}, {"role": "assistant", "content": "Hello! How can I help you?"}]
    return Conversation([*first, *_chat(question, answer).messages])


def call_tool(rng: random.Random) -> Conversation:
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    call = {"name": "add", "arguments": json.dumps({"a": a, "b": b})}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": f"What is {a} plus {b}?"},
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "id": "call_0", "function": call}]},
        {"role": "tool", "tool_call_id": "call_0", "content": str(a + b)},
        {"role": "assistant", "content": f"{a} plus {b} is {a + b}."},
    ]
    return Conversation(messages, tools=[ADD_TOOL])


ADD_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}

TASKS: dict[Callable[[random.Random], Conversation], float] = {
    largest: 0.25,
    biggest: 0.20,
    smallest: 0.15,
    yes_no_maybe: 0.12,
    repeat: 0.10,
    greet: 0.10,
    call_tool: 0.08,
}


def _numbers(rng: random.Random) -> list[int]:
    return rng.sample(range(1, MAX_NUMBER + 1), 3)


def _chat(question: str, answer: str) -> Conversation:
    return Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer}])


def _or(items: list[Any]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} or {last}"
