"""Graders that ask a model: a score within a range, or one of several labels.

The judge is asked for a JSON object, which the engine enforces, so that every answer has a result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Protocol

from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.spec import JudgeSampling, LabelModelGrader, ScoreModelGrader
from tandem.rl.graders.templates import render

MAX_TOKENS = 512
_ROLES = {"developer": "system"}  # chat templates know `system`


class Ask(Protocol):
    async def __call__(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the chat completion for the body of a request. Raise GraderError."""


def request(grader: ScoreModelGrader | LabelModelGrader, item: Any, sample: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of the chat completion that grades an answer."""
    sampling = grader.sampling_params or JudgeSampling()
    options = {
        "temperature": 0.0 if sampling.temperature is None else sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "max_tokens": sampling.max_completions_tokens or MAX_TOKENS,
    }
    messages = [{"role": _ROLES.get(m.role, m.role), "content": render(m.text, item, sample)} for m in grader.input]
    return {
        "model": grader.model,
        "messages": messages,
        "response_format": {"type": "json_schema", "json_schema": {"name": "grade", "schema": _schema(grader)}},
        **{name: value for name, value in options.items() if value is not None},
    }


def _schema(grader: ScoreModelGrader | LabelModelGrader) -> dict[str, Any]:
    kind = {"type": "number"} if isinstance(grader, ScoreModelGrader) else {"enum": grader.labels}
    return {"type": "object", "properties": {"result": kind}, "required": ["result"], "additionalProperties": False}


def score(grader: ScoreModelGrader | LabelModelGrader, completion: Mapping[str, Any]) -> float:
    """Return the grade in a judge's answer. Raise GraderError for an answer without one."""
    message = completion["choices"][0]["message"]
    if message.get("refusal"):
        raise GraderError("model_grader_refusal_error", f"the judge {grader.model} refused to grade")
    try:
        result = json.loads(message.get("content") or "")["result"]
    except (ValueError, KeyError, TypeError):
        raise _unreadable(grader, completion) from None
    if isinstance(grader, LabelModelGrader):
        return float(result in grader.passing_labels)
    if isinstance(result, bool) or not isinstance(result, int | float) or not math.isfinite(result):
        raise _unreadable(grader, completion)
    low, high = grader.bounds
    if not low <= result <= high:
        raise GraderError(
            "model_grader_parse_error",
            f"the judge {grader.model} gave {result:g}, outside of its range [{low:g}, {high:g}]; tell it the range",
        )
    return float(result)


def _unreadable(grader: ScoreModelGrader | LabelModelGrader, completion: Mapping[str, Any]) -> GraderError:
    cut = completion["choices"][0].get("finish_reason") == "length"
    why = "its answer was cut off; raise sampling_params.max_completions_tokens" if cut else "its answer has no result"
    return GraderError("model_grader_parse_error", f"the judge {grader.model} gave no grade: {why}")
