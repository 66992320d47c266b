"""A custom environment: a class with tasks, messages and a reward, which the task file names in one line."""

import itertools
from collections.abc import Sequence

from tandem.rl.environments.base import Message, SingleTurnEnvironment, Split

OFFERS = [*itertools.permutations(["yes", "no"]), *itertools.permutations(["yes", "no", "maybe"])]
VERBS = {"train": ["Answer with", "Respond with", "Say"], "eval": ["Just say"]}


class FirstOffered(SingleTurnEnvironment[tuple[str, tuple[str, ...]]]):
    """Say the word that is offered first. The built-in tiny model can say any of them."""

    def tasks(self, split: Split) -> Sequence[tuple[str, tuple[str, ...]]]:
        return list(itertools.product(VERBS[split], OFFERS))

    def messages(self, task: tuple[str, tuple[str, ...]]) -> list[Message]:
        verb, (*words, last) = task
        return [{"role": "user", "content": f"{verb} {', '.join(words)} or {last}"}]

    def reward(self, task: tuple[str, tuple[str, ...]], answer: str | None) -> float:
        return float(answer == task[1][0])

    def metrics(self, task: tuple[str, tuple[str, ...]], answer: str | None) -> dict[str, float]:
        return {"is_offered": answer in task[1]}
