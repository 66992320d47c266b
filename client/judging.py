"""Scores of a group's trajectories relative to each other, by any model as the judge, in the manner of RULER.

    scores = await judge_group(client.openai(), "tandem/judge", trajectories)
    for trajectory, score in zip(trajectories, scores):
        trajectory["reward"] = score.score

A judge compares trajectories more reliably than it grades one alone, and training needs no more than the comparison:
advantages are relative to the group (RULER, https://art.openpipe.ai/fundamentals/ruler).
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.client.capturing.capture import no_capture
from tandem.client.errors import TandemError
from tandem.client.transcripts import conversations

DEFAULT_RUBRIC = """\
- Reaching the goal counts most: an attempt that does scores far above all that don't.
- Of those that reach it, the one with fewer detours and mistakes scores higher.
- The distance between two scores shows how much better one attempt is: nearly equal attempts get nearly equal scores.
- An attempt that ends before the goal may score above one that made no progress."""

INSTRUCTIONS = """\
You compare attempts at the same goal. Give each trajectory below a score between 0 and 1, relative to the others.

Grading standards:
{rubric}

Answer with one JSON object and nothing else. Its keys are the ids of the trajectories, each exactly once: {ids}. Each
value is an object with "explanation", one or two sentences, and "score", a number from 0 to 1."""

MAX_EXPLANATION = 300
"""Characters; the schema limits it, so that a small judge comes to an end."""
MAX_ECHO = 500
"""Characters of an answer with a fault that the judge is shown again; a judge that found no end filled its limit."""
SCORES = [hundredths / 100 for hundredths in range(101)]
"""The scores that the schema allows: a number of any length could be written without an end."""
FORMATS = frozenset({"response_format", "structured_outputs"})
ATTEMPTS = 3


@dataclass(frozen=True)
class Score:
    """The judge's opinion of one trajectory."""

    score: float
    """From 0 to 1, relative to the other trajectories of the group."""
    explanation: str


class JudgeError(TandemError, RuntimeError):
    """The judge gave no usable scores.

    Attributes:
        model: the judge.
        group: the group's name, if it has one.
    """

    def __init__(self, message: str, model: str = "", group: str = ""):
        super().__init__(message)
        self.model, self.group = model, group

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.model, self.group)


async def judge_group(
    openai: Any,
    model: str,
    trajectories: Sequence[Any],
    *,
    rubric: str = DEFAULT_RUBRIC,
    group: str = "",
    attempts: int = ATTEMPTS,
    tools: Sequence[Any] | None = None,
    **sampling: Any,
) -> list[Score]:
    """Return a score for each trajectory. Raise JudgeError.

    The common beginning of the trajectories is shown once, and equal ones are shown once and get the same score. The
    judge's own call is never part of a capture. An answer that can't be read is returned to the judge with the fault.

    Args:
        openai: an OpenAI client, sync or async, of the service or of any compatible endpoint.
        model: the judge's name there. A version of the trained model is pinned: `entity/project/name:step3`.
        trajectories: dictionaries, pydantic objects or captured rollouts.
        rubric: the grading standards.
        group: the group's name, for errors.
        attempts: answers that are asked for at most.
        tools: the tools that the agent had.
        sampling: fields of the request, like max_tokens, temperature or chat_template_kwargs. With a format of its own
            (`response_format` or `structured_outputs`), the schema of the answer is left out.
    """
    shown: dict[str, int] = {}
    for trajectory in trajectories:
        shown.setdefault(json.dumps(conversations(trajectory), sort_keys=True), len(shown) + 1)
    if not shown:
        return []
    ids = [str(number) for number in shown.values()]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": INSTRUCTIONS.format(rubric=rubric, ids=", ".join(ids))},
        {"role": "user", "content": _material([json.loads(text) for text in shown], tools)},
    ]
    scores = await _Judge(openai, model, group, sampling).scores(messages, ids, attempts)
    return [scores[str(shown[json.dumps(conversations(one), sort_keys=True)])] for one in trajectories]


class _Judge:
    def __init__(self, openai: Any, model: str, group: str, sampling: Mapping[str, Any]):
        self._openai, self._model, self._group, self._sampling = openai, model, group, sampling
        self._has_schemas = not FORMATS & sampling.keys()

    async def scores(self, messages: list[dict[str, Any]], ids: list[str], attempts: int) -> dict[str, Score]:
        fault = "there was no attempt"
        for _ in range(attempts):
            content, reason = await self._ask(messages, ids)
            try:
                return parsed_scores(content, ids)
            except ValueError as error:
                fault = f"{error}{' (it was cut off: raise max_tokens)' if reason == 'length' else ''}"
            messages = [
                *messages[:2],
                {"role": "assistant", "content": content[:MAX_ECHO]},
                {"role": "user", "content": f"That can't be used: {fault}. Answer again with the whole JSON object."},
            ]
        raise self._error(f"gave no usable scores in {attempts} attempts. The last fault: {fault}")

    async def _ask(self, messages: list[dict[str, Any]], ids: list[str]) -> tuple[str, str | None]:
        """Return the text of an answer and the reason of its end."""
        from openai import BadRequestError, OpenAIError, UnprocessableEntityError

        body = {**({"response_format": _schema(ids)} if self._has_schemas else {}), **self._sampling}
        try:
            with no_capture():
                made = self._openai.chat.completions.create(model=self._model, messages=messages, extra_body=body)
                completion = await made if inspect.isawaitable(made) else made
        except (BadRequestError, UnprocessableEntityError) as error:
            if not self._has_schemas or not _is_about_format(error):
                raise self._error(f"was refused: {error}") from error
            self._has_schemas = False  # an endpoint without structured outputs
            return await self._ask(messages, ids)
        except OpenAIError as error:
            raise self._error(f"didn't answer: {type(error).__name__}: {error}") from error
        if not completion.choices:
            raise self._error("answered without a choice")
        choice = completion.choices[0]
        return choice.message.content or "", choice.finish_reason

    def _error(self, what: str) -> JudgeError:
        of = f" of {self._group}" if self._group else ""
        return JudgeError(f"The judge {self._model}{of} {what}.", self._model, self._group)


def _is_about_format(error: Exception) -> bool:
    return re.search("response_format|json_schema|structured|schema|grammar", str(error)) is not None


def _schema(ids: Sequence[str]) -> dict[str, Any]:
    """Return the format of an answer: each id exactly once, which a list couldn't promise."""
    score = {
        "type": "object",
        "properties": {
            "explanation": {"type": "string", "maxLength": MAX_EXPLANATION},
            "score": {"enum": SCORES},
        },
        "required": ["explanation", "score"],
        "additionalProperties": False,
    }
    schema = {
        "type": "object",
        "properties": {id: {"$ref": "#/$defs/score"} for id in ids},
        "required": list(ids),
        "additionalProperties": False,
        "$defs": {"score": score},
    }
    return {"type": "json_schema", "json_schema": {"name": "scores", "schema": schema}}


def _material(shown: list[list[list[dict[str, Any]]]], tools: Sequence[Any] | None) -> str:
    """Return the text that the judge reads: their common beginning once, then each trajectory without it."""
    firsts = [conversation[0] if conversation else [] for conversation in shown]
    common = _common_length(firsts) if len(firsts) > 1 else 0
    parts = []
    if tools:
        parts.append(f"<tools>\n{_json(list(tools))}\n</tools>")
    if common:
        parts.append(f"<common_beginning>\n{_json(firsts[0][:common])}\n</common_beginning>")
    for number, (first, conversation) in enumerate(zip(firsts, shown, strict=True), start=1):
        rest = [_json(first[common:]), *map(_json, conversation[1:])]
        parts.append(f'<trajectory id="{number}">\n' + "\n".join(rest) + "\n</trajectory>")
    return "\n\n".join(parts)


def _common_length(sequences: Sequence[Sequence[Any]]) -> int:
    length = 0
    for items in zip(*sequences, strict=False):
        if any(item != items[0] for item in items):
            break
        length += 1
    return length


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def parsed_scores(text: str, ids: Sequence[str]) -> dict[str, Score]:
    """Return the scores in a judge's answer, by id. Raise ValueError with the fault.

    Words around the JSON are ignored, also thoughts and code fences. A list of scores with their ids is read too.
    """
    fault = "it has no JSON object"
    for value in _objects(re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)):
        try:
            return _scores(value, ids)
        except ValueError as error:
            fault = str(error)
    raise ValueError(fault)


def _objects(text: str) -> list[Any]:
    """Return the JSON objects and lists in a text, from the outermost on, the last one first: it is the conclusion."""
    decoder, found, place = json.JSONDecoder(), [], 0
    while (match := re.compile(r"[{\[]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            place = match.start() + 1
        else:
            found.append(value)
    return found[::-1]


def _scores(value: Any, ids: Sequence[str]) -> dict[str, Score]:
    if isinstance(value, dict) and isinstance(value.get("scores"), dict | list):
        value = value["scores"]
    pairs = _listed(value) if isinstance(value, list) else list(value.items()) if isinstance(value, dict) else []
    names = [str(name) for name, _ in pairs]
    faults = {
        "lacks": [id for id in ids if id not in names],
        "repeats": sorted({name for name in names if names.count(name) > 1}),
        "has unknown": sorted(set(names) - set(ids)),
    }
    if said := [f"{what} the ids {', '.join(which)}" for what, which in faults.items() if which]:
        raise ValueError(f"it {' and '.join(said)}")
    return {str(name): _score(str(name), item) for name, item in pairs}


def _listed(items: Sequence[Any]) -> list[tuple[Any, Any]]:
    return [(item.get("trajectory_id", item.get("id")), item) for item in items if isinstance(item, dict)]


def _score(id: str, item: Any) -> Score:
    given, explanation = (item.get("score"), item.get("explanation")) if isinstance(item, dict) else (item, None)
    try:
        score = math.nan if given is None or isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise ValueError(f"the score of {id} is {str(given)[:40]!r}, not a number from 0 to 1")
    return Score(score, str(explanation or ""))
