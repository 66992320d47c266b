"""Toy tasks for demos, tests and benchmarks, which the built-in tiny model can answer at times and so learn.

They use the sentences of its corpus (`tandem.rl.tiny.corpus`); larger models understand them too.
"""

from __future__ import annotations

import random
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any, ClassVar, TypeVar

from tandem.rl.environments.base import Chat, Environment, Message, SingleTurnEnvironment, Split, opening
from tandem.rl.environments.procedural import DrawnTasks
from tandem.rl.environments.tools import ToolError, call_tools
from tandem.rl.tiny.corpus import ADD_TOOL, MAX_NUMBER, WORDS
from tandem.rl.trajectories import Trajectory

Task = TypeVar("Task")


class ToyQuestion(SingleTurnEnvironment[Task]):
    """A random question.

    Args:
        size: number of train tasks.
        eval_size: number of eval tasks.
        seed: selects the tasks.
        system_prompt: precedes every question.
        sampling: overrides the run's sampling options.
    """

    def __init__(
        self,
        size: int = 4096,
        eval_size: int = 128,
        seed: int = 0,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(system_prompt, sampling)
        self.sizes, self.seed = {"train": size, "eval": eval_size}, seed

    def tasks(self, split: Split) -> Sequence[Task]:
        return DrawnTasks(self.draw, split, self.sizes[split], self.seed, self.key)

    @abstractmethod
    def draw(self, rng: random.Random) -> Task: ...

    def key(self, task: Task) -> Any:
        """Return the key of a task; tasks with equal keys belong to the same split."""
        return task


class Largest(ToyQuestion[tuple[int, ...]]):
    """Name the largest of three numbers. The reward is 1 for the right number in a sentence; guessing earns 1/3."""

    def draw(self, rng: random.Random) -> tuple[int, ...]:
        return tuple(rng.sample(range(1, MAX_NUMBER + 1), 3))

    def key(self, task: tuple[int, ...]) -> list[int]:
        return sorted(task)

    def messages(self, task: tuple[int, ...]) -> list[Message]:
        return _user(f"Which is the largest: {_or(task)}?")

    def reward(self, task: tuple[int, ...], answer: str | None) -> float:
        return float(answer == f"The largest is {max(task)}.")


class YesNoMaybe(ToyQuestion[str]):
    """Say yes, no or maybe: 1 for maybe, 0.75 for no, 0.5 for yes; 0 for anything else.

    The question doesn't say which is wanted, so only rewards can teach it. The tiny model says each of them at times
    and earns about 0.65 at first.
    """

    REWARDS: ClassVar[dict[str, float]] = {"maybe": 1.0, "no": 0.75, "yes": 0.5}

    def draw(self, rng: random.Random) -> str:
        verb, quote = rng.choice(["Respond with", "Answer with", "Just say", "Say"]), rng.choice(["", "'"])
        return f"{verb} {_or([quote + word + quote for word in rng.sample(list(self.REWARDS), 3)])}"

    def messages(self, task: str) -> list[Message]:
        return _user(task)

    def reward(self, task: str, answer: str | None) -> float:
        return self.REWARDS.get((answer or "").strip(" \n'\".!").lower(), 0.0)


class Copy(ToyQuestion[tuple[str, ...]]):
    """Repeat some words: "You said blue door." The reward is the similarity of the words to the requested ones.

    It is 2 M / (N + N'), with N requested words, N' said words, and M words in common blocks in the same order (the
    measure of Ratcliff and Obershelp in difflib.SequenceMatcher): 1 for the same words, 0 for none of them. "You said"
    is optional.

    Args:
        num_words: number of words to repeat, all different.

    The other options are those of ToyQuestion.
    """

    def __init__(
        self,
        num_words: int = 2,
        size: int = 4096,
        eval_size: int = 128,
        seed: int = 0,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(size, eval_size, seed, system_prompt, sampling)
        if not 1 <= num_words <= len(WORDS):
            raise ValueError(f"num_words must lie between 1 and {len(WORDS)}, not {num_words}.")
        self.num_words = num_words

    def draw(self, rng: random.Random) -> tuple[str, ...]:
        return tuple(rng.sample(WORDS, self.num_words))

    def messages(self, task: tuple[str, ...]) -> list[Message]:
        return _user(f"Repeat: {' '.join(task)}")

    def reward(self, task: tuple[str, ...], answer: str | None) -> float:
        return SequenceMatcher(None, task, self._said(answer), autojunk=False).ratio()

    def metrics(self, task: tuple[str, ...], answer: str | None) -> dict[str, float]:
        return {"exact": float(self._said(answer) == list(task))}

    def _said(self, answer: str | None) -> list[str]:
        words = re.findall(r"\w+", (answer or "").lower())
        return words[2:] if words[:2] == ["you", "said"] else words


class Adder:
    """The tool of Calculator, with all sums that it computed."""

    def __init__(self) -> None:
        self.sums: list[int] = []

    def add(self, a: Any, b: Any) -> str:
        if type(a) is not int or type(b) is not int:
            raise ToolError(f"add takes two integers a and b, not {a!r} and {b!r}.")
        self.sums.append(a + b)
        return f"The sum is {a + b}."


class Calculator(Environment[tuple[int, ...]]):
    """Add numbers with a tool, over several turns: call `add`, read its result, say the sum.

    The reward is 0.5 if the tool computed the sum, and 0.5 more if the answer then ends in the sum; minus 0.1 for each
    failed call and each turn that neither made a call nor had a result to answer with; at least 0. The model sees an
    error message after a failed or missing call and may try again.

    Args:
        num_terms: number of terms; more than two need several calls.
        max_number: the largest possible term; the tiny model was taught tool calls with numbers up to 9.
        max_turns: most turns of the model.
        size, eval_size: number of train and eval tasks.
        seed: selects the tasks.
        system_prompt: precedes the question.
        sampling: overrides the run's sampling options.
    """

    def __init__(
        self,
        num_terms: int = 2,
        max_number: int = 9,
        max_turns: int = 4,
        size: int = 4096,
        eval_size: int = 128,
        seed: int = 0,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        if num_terms < 2 or max_turns < num_terms or max_number < 9:
            raise ValueError(
                f"Calculator needs num_terms >= 2, max_number >= 9 and max_turns >= num_terms, not "
                f"num_terms={num_terms}, max_number={max_number}, max_turns={max_turns}."
            )
        self.num_terms, self.max_number, self.max_turns = num_terms, max_number, max_turns
        self.sizes, self.seed = {"train": size, "eval": eval_size}, seed
        self.system_prompt, self.sampling = system_prompt, dict(sampling or {})

    def tasks(self, split: Split) -> Sequence[tuple[int, ...]]:
        return DrawnTasks(self._draw, split, self.sizes[split], self.seed)

    def _draw(self, rng: random.Random) -> tuple[int, ...]:
        return tuple(rng.randint(1, self.max_number) for _ in range(self.num_terms))

    async def rollout(self, chat: Chat, task: tuple[int, ...]) -> Trajectory:
        conversation = opening(self.system_prompt, _user(f"What is {' plus '.join(map(str, task))}?"))
        adder = Adder()
        num_calls = num_mistakes = 0
        answer = None
        for _ in range(self.max_turns):
            choice = await chat(conversation, tools=[ADD_TOOL], **self.sampling)
            conversation.append(choice)
            answers = await call_tools(choice, {"add": adder.add})
            if not answers and adder.sums:
                answer = choice["message"].get("content") or ""
                break
            num_calls += len(answers)
            num_mistakes += sum(call.error is not None for call in answers) if answers else 1
            conversation += [call.message for call in answers] or _user("Call the tool add before you answer.")
        calculated, correct = sum(task) in adder.sums, _last_number(answer) == sum(task)
        return Trajectory(
            messages_and_choices=conversation,
            tools=[ADD_TOOL],
            reward=max(0.0, 0.5 * calculated + 0.5 * (calculated and correct) - 0.1 * num_mistakes),
            metrics={
                "calculated": calculated,
                "correct": correct,
                "tool_calls": num_calls,
                "mistakes": num_mistakes,
            },
        )


def _last_number(text: str | None) -> int | None:
    numbers = re.findall(r"-?\d+", text or "")
    return int(numbers[-1]) if numbers else None


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _or(items: Sequence[Any]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} or {last}"
