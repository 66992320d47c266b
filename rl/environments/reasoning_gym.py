"""Reasoning Gym's procedural tasks, with the library's own verifiers as the reward.

Over a hundred datasets of logic, arithmetic, algorithms and games (Stojanovski et al. 2025, arXiv 2505.24760;
https://github.com/open-thought/reasoning-gym). They are for models of real size: the built-in tiny model can't read
their questions. `pip install reasoning-gym`, or `tandem-rl[environments]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, overload

from tandem.rl.environments.base import Chat, Environment, Split, opening
from tandem.rl.trajectories import Trajectory

if TYPE_CHECKING:
    from reasoning_gym.composite import CompositeDataset, DatasetSpec

Entry = dict[str, Any]
"""An item of a dataset: question, answer, metadata."""
EVAL_SEED_OFFSET = 1_000_000_000
"""The library draws item i of a dataset from the seed `seed + i`, so nearby seeds share items."""


class ReasoningGym(Environment[Entry]):
    """Tasks of one dataset or of a mix of them.

    datasets: {chain_sum: {weight: 2, config: {max_terms: 4}}, countdown: {}}

    Args:
        datasets: the name of a dataset, or for each name its `weight` in the mix (default 1) and its `config`, the
            arguments of that dataset.
        size: number of train tasks.
        eval_size: number of eval tasks; their questions never occur in train.
        seed: selects the tasks.
        system_prompt: one of the library's by its name (default, simple, direct, DeepSeekZero, chain_of_draft), or a
            text; it must ask for the answer in `answer_tag`. None: no system prompt.
        answer_tag: the answer is the content of the last <answer>...</answer>; without the tags there is no answer.
            None: the whole text is the answer.
        sampling: overrides the run's sampling options.

    The reward is the dataset's `score_answer`, from 0 to 1. Metrics: `answered`, true if there was an answer;
    `score/DATASET`; `unscored`, true if the verifier raised an exception, which gives a reward of 0.
    """

    def __init__(
        self,
        datasets: str | Mapping[str, Mapping[str, Any] | None],
        size: int = 10_000,
        eval_size: int = 128,
        seed: int = 0,
        system_prompt: str | None = "default",
        answer_tag: str | None = "answer",
        sampling: Mapping[str, Any] | None = None,
    ) -> None:
        self.system_prompt = _library().utils.SYSTEM_PROMPTS.get(system_prompt, system_prompt)
        self.answer_tag, self.sampling = answer_tag, dict(sampling or {})
        if not (0 < size < EVAL_SEED_OFFSET and 0 < eval_size < EVAL_SEED_OFFSET and 0 <= seed < EVAL_SEED_OFFSET):
            raise ValueError(f"size, eval_size and seed lie between 0 and {EVAL_SEED_OFFSET}; sizes are at least 1.")
        mix = {datasets: {}} if isinstance(datasets, str) else datasets
        self._train = _composite(mix, size, seed)
        self._eval = _composite(mix, eval_size, seed + EVAL_SEED_OFFSET)

    def tasks(self, split: Split) -> Sequence[Entry]:
        return self._held_out if split == "eval" else _Without(self._train, {e["question"] for e in self._held_out})

    @cached_property
    def _held_out(self) -> list[Entry]:
        return [self._eval[index] for index in range(len(self._eval))]

    async def rollout(self, chat: Chat, task: Entry) -> Trajectory:
        messages = opening(self.system_prompt, [{"role": "user", "content": task["question"]}])
        choice = await chat(messages, **self.sampling)
        answer = self._answer(choice["message"].get("content"))
        dataset, logs = task["metadata"]["source_dataset"], []
        try:
            # In a thread: some verifiers take seconds, and all rollouts share the event loop.
            score = float(await asyncio.to_thread(self._train.score_answer, answer, task))
        except Exception as error:  # a verifier may raise anything
            score = 0.0
            logs.append(f"The verifier of {dataset} raised {type(error).__name__}: {error}")
        return Trajectory(
            messages_and_choices=[*messages, choice],
            reward=score,
            metrics={"answered": answer is not None, f"score/{dataset}": score, "unscored": bool(logs)},
            metadata={"dataset": dataset},
            logs=logs,
        )

    def _answer(self, text: str | None) -> str | None:
        if text is None or self.answer_tag is None:
            return text
        answer: str | None = _library().utils.extract_answer(text, self.answer_tag)
        return answer


class _Without(Sequence[Entry]):
    """A dataset in which entries with certain questions are replaced by later entries."""

    def __init__(self, dataset: CompositeDataset, questions: set[str]) -> None:
        self._dataset, self._questions = dataset, questions

    def __len__(self) -> int:
        return len(self._dataset)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        chosen = range(len(self))[index]
        return self._entry(chosen) if isinstance(chosen, int) else [self._entry(item) for item in chosen]

    def _entry(self, first: int) -> Entry:
        for distance in range(len(self)):
            entry: Entry = self._dataset[(first + distance) % len(self)]
            if entry["question"] not in self._questions:
                return entry
        raise ValueError(
            "Every train question is also an eval question: these datasets have too few. Make them harder in their "
            "config, or lower eval_size."
        )


def _library() -> ModuleType:
    try:
        import reasoning_gym
        import reasoning_gym.composite
    except ModuleNotFoundError as error:
        raise ValueError(
            f"Reasoning Gym isn't installed completely ({error.name} is missing). Install it where rollouts run: "
            "pip install reasoning-gym"
        ) from error
    library: ModuleType = reasoning_gym
    return library


def _composite(mix: Mapping[str, Mapping[str, Any] | None], size: int, seed: int) -> CompositeDataset:
    """Return the mix as one dataset. Raises ValueError that names the fault."""
    composite = _library().composite
    if not mix:
        raise ValueError("datasets names no dataset.")
    specs = []
    for name, given in mix.items():
        given = dict(given or {})
        spec = composite.DatasetSpec(name, given.pop("weight", 1.0), dict(given.pop("config", None) or {}))
        if given:
            raise ValueError(f"datasets.{name} takes weight and config, not {', '.join(given)}.")
        _check(spec)
        specs.append(spec)
    return composite.CompositeDataset(composite.CompositeConfig(size=size, seed=seed, datasets=specs))


def _check(spec: DatasetSpec) -> None:
    datasets = _library().factory.DATASETS
    if spec.name not in datasets or spec.name == "composite":
        alike = get_close_matches(spec.name, datasets, n=5, cutoff=0.5)
        hint = f"Do you mean {' or '.join(alike)}? " if alike else ""
        raise ValueError(
            f"Reasoning Gym has no dataset {spec.name!r}. {hint}All {len(datasets)} are listed by "
            f"`python -c 'import reasoning_gym.factory as f; print(*f.DATASETS)'`."
        )
    if not (isinstance(spec.weight, int | float) and spec.weight > 0):
        raise ValueError(f"datasets.{spec.name}.weight must be a number above 0, not {spec.weight!r}.")
    options = [field.name for field in fields(datasets[spec.name][1]) if field.name not in ("seed", "size")]
    if unknown := [name for name in spec.config if name not in options]:
        raise ValueError(
            f"datasets.{spec.name}.config has no {', '.join(unknown)}. It takes: {', '.join(options)}. (size and seed "
            "are those of the whole mix.)"
        )
    try:
        _library().create_dataset(spec.name, size=1, seed=0, **spec.config)
    except Exception as error:  # each dataset checks its options its own way, many by assert
        raise ValueError(f"datasets.{spec.name}.config was rejected ({type(error).__name__}): {error}") from error
