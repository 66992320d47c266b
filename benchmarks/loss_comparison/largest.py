"""The default task: name the largest of three numbers. The untrained tiny model guesses."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from tandem.rl.environments import toy
from tandem.rl.environments.base import Split
from tandem.rl.tiny.corpus import MAX_NUMBER

Numbers = tuple[int, int, int]
NUM_EVAL_TASKS = 1024


class Largest(toy.Largest):
    """All ordered triples of different numbers from 1 to 20; 1024 of them are kept for evaluation."""

    def tasks(self, split: Split) -> Sequence[Numbers]:
        triples = list(itertools.permutations(range(1, MAX_NUMBER + 1), 3))
        random.Random("largest").shuffle(triples)
        return triples[:NUM_EVAL_TASKS] if split == "eval" else triples[NUM_EVAL_TASKS:]
