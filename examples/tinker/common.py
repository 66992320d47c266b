"""What the examples share: questions, chats as tokens, datums, and how well a model answers.

The SDK finds the service by the variables TINKER_BASE_URL and TINKER_API_KEY.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tinker
from tinker import types

BASE_MODEL = "tandem/tiny"
MAX_TOKENS = 24
"""Of an answer: twice as many as the longest right one has."""

Message = dict[str, Any]
Tokens = list[int]


@dataclass(frozen=True)
class Question:
    """Which of three numbers is the largest? The tiny model answers in a sentence, with any of the three."""

    numbers: tuple[int, int, int]

    @property
    def messages(self) -> list[Message]:
        a, b, c = self.numbers
        return [{"role": "user", "content": f"Which is the largest: {a}, {b} or {c}?"}]

    @property
    def answer(self) -> str:
        return f"The largest is {max(self.numbers)}."

    def wrong_answer(self, rng: random.Random) -> str:
        return f"The largest is {rng.choice([n for n in self.numbers if n != max(self.numbers)])}."


def questions(rng: random.Random, count: int, held_out: bool = False) -> list[Question]:
    """Return `count` questions. Those whose sum is a multiple of 5 are never trained: they are held out."""
    found: list[Question] = []
    while len(found) < count:
        a, b, c = rng.sample(range(1, 21), 3)
        if ((a + b + c) % 5 == 0) == held_out:
            found.append(Question((a, b, c)))
    return found


def prompt_tokens(tokenizer: Any, messages: list[Message], tools: list[Any] | None = None) -> Tokens:
    """Render a chat up to the answer that the model is to give."""
    tokens: Tokens = tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    return tokens


def answer_tokens(tokenizer: Any, text: str) -> Tokens:
    """Return the tokens of an answer as the model would sample them, with the one that ends it."""
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


def datum(prompt: Tokens, completion: Tokens, **values: Sequence[Any]) -> types.Datum:
    """Return a datum whose input at position i predicts target i.

    `values` are inputs of the loss, one for each token of the completion. Prompt tokens get zeros, which means that
    they aren't trained: a weight of 0, or an advantage of 0.
    """
    tokens = prompt + completion
    untrained = [0.0] * (len(prompt) - 1)
    inputs: dict[str, Any] = {"target_tokens": tokens[1:]}  # the SDK makes tensors of lists
    for name, of_tokens in values.items():
        inputs[name] = untrained + [float(value) for value in of_tokens]
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), inputs)


def accuracy(sampler: tinker.SamplingClient, tokenizer: Any, asked: list[Question]) -> float:
    """Return the share of questions that the model answers rightly with its likeliest tokens."""
    greedy = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
    futures = [
        sampler.sample(types.ModelInput.from_ints(prompt_tokens(tokenizer, question.messages)), 1, greedy)
        for question in asked
    ]
    texts = [decode(tokenizer, future.result().sequences[0].tokens) for future in futures]
    return sum(text == question.answer for text, question in zip(texts, asked, strict=True)) / len(asked)


def decode(tokenizer: Any, tokens: Tokens) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=True)
    return text


def report(step: int, **numbers: float) -> None:
    """Print the numbers of a step on one line."""
    print(f"step {step:3d}  " + "  ".join(f"{name} {number:.3f}" for name, number in numbers.items()), flush=True)
