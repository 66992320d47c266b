"""Grade an answer: the reward that a grader gives it, and those of the graders that it consists of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.formulas import evaluate
from tandem.rl.graders.judging import Ask, request, score
from tandem.rl.graders.programs import ProgramLimits, run_program
from tandem.rl.graders.sample import Sample
from tandem.rl.graders.spec import (
    Grader,
    MultiGrader,
    PythonGrader,
    StringCheckGrader,
    TextSimilarityGrader,
    parts,
)
from tandem.rl.graders.string_check import string_check
from tandem.rl.graders.templates import render
from tandem.rl.graders.text_similarity import METRICS


@dataclass(frozen=True)
class Grade:
    reward: float
    sub_rewards: Mapping[str, float]
    """Of each grader that the reward consists of, by name."""
    judge_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens of judges' prompts and answers, by the model's name."""


class Grading:
    """A grader with all that it needs.

    grading = Grading(grader, ask)
    grade = await grading(row, Sample(output_text))
    """

    def __init__(self, grader: Grader, ask: Ask | None = None, programs: ProgramLimits | None = None):
        """`ask` calls judges; None: there are none. `programs` None: Python graders are off."""
        self._grader, self._ask, self._programs = grader, ask, programs

    async def __call__(self, item: Any, sample: Sample) -> Grade:
        """Return the grade of an answer to a row. Raise GraderError."""
        tokens: dict[str, int] = {}
        graders = [part for _, part in parts(self._grader)]
        names = list(self._grader.graders) if isinstance(self._grader, MultiGrader) else [self._grader.name]
        rewards = await asyncio.gather(*(self._part(part, item, sample, tokens) for part in graders))
        sub_rewards = dict(zip(names, rewards, strict=True))
        if isinstance(self._grader, MultiGrader):
            return Grade(evaluate(self._grader.calculate_output, sub_rewards), sub_rewards, tokens)
        return Grade(rewards[0], sub_rewards, tokens)

    async def _part(self, grader: Any, item: Any, sample: Sample, tokens: dict[str, int]) -> float:
        names = sample.namespace()
        if isinstance(grader, StringCheckGrader):
            texts = render(grader.input, item, names), render(grader.reference, item, names)
            return string_check(grader.operation, *texts)
        if isinstance(grader, TextSimilarityGrader):
            texts = render(grader.input, item, names), render(grader.reference, item, names)
            return await asyncio.to_thread(METRICS[grader.evaluation_metric], *texts)
        if isinstance(grader, PythonGrader):
            if self._programs is None:
                raise GraderError("python_grader_server_error", "this service runs no Python graders")
            return await run_program(grader.source, names, item, self._programs)
        if self._ask is None:
            raise GraderError("model_grader_server_error", "there is no judge here")
        completion = await self._ask(request(grader, item, names))
        used = (completion.get("usage") or {}).get("total_tokens", 0)
        tokens[grader.model] = tokens.get(grader.model, 0) + used
        return score(grader, completion)
