"""The default task: naming the largest of three numbers, which the tiny model guesses at first."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from tandem.rl.environments.base import Message, SingleTurnEnvironment, Split

Numbers = tuple[int, int, int]
HIGHEST = 20
NUM_EVAL_TASKS = 1024


class Largest(SingleTurnEnvironment[Numbers]):
    """All ordered triples of different numbers from 1 to 20, of which 1024 are kept for evaluation."""

    def tasks(self, split: Split) -> Sequence[Numbers]:
        triples = list(itertools.permutations(range(1, HIGHEST + 1), 3))
        random.Random("largest").shuffle(triples)
        return triples[:NUM_EVAL_TASKS] if split == "eval" else triples[NUM_EVAL_TASKS:]

    def messages(self, task: Numbers) -> list[Message]:
        a, b, c = task
        return [{"role": "user", "content": f"Which is the largest: {a}, {b} or {c}?"}]

    def reward(self, task: Numbers, answer: str | None) -> float:
        """1 for the right answer, in a sentence; 0 for anything else."""
        return float(answer == f"The largest is {max(task)}.")
