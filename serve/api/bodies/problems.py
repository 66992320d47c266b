"""Turns pydantic's errors into problems: a place that the request really has, and a sentence that says what to send.

Only names are quoted. Other rejected values may be huge, secret, or not writable as JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from tandem.cluster.payloads.reading import FaultDetails
from tandem.rl.config import TrainingConfig
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.supervised.rows import SupervisedRow
from tandem.serve.api.wire.requests import REQUEST_BODIES
from tandem.serve.errors import Problem

Loc = tuple[str | int, ...]
Finding = ErrorDetails | FaultDetails

MAX_PROBLEMS = 50
MAX_NAME = 64
"""Characters that a place keeps of a name: a client may have sent a megabyte as a key."""

NOT_FINITE = "must be a finite number: JSON has neither NaN nor infinities"
_ID = "must be an id (a UUID) as this service gave it"
_TIME = "must be a time as ISO 8601 writes it, like 2026-01-31T12:00:00Z"
_SENTENCES = {
    "missing": "is missing; send it",
    "model_type": "must be an object",
    "dict_type": "must be an object",
    "list_type": "must be an array",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number of fewer digits",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": NOT_FINITE,
    "not_finite": NOT_FINITE,
    "uuid_type": _ID,
    "uuid_parsing": _ID,
    "datetime_type": _TIME,
    "datetime_parsing": _TIME,
    "datetime_from_date_parsing": _TIME,
    "union_tag_not_found": "needs a `type`",
}
_VALUES_OF = {
    "metrics": "must be a number, true or false",
    "metadata": "must be a number, a string, true, false or null",
}
_ITEMS_OF_SEVERAL_KINDS = ("messages_and_choices", "messages", "tool_calls", "parts")
_MODELS: tuple[type[BaseModel], ...] = (*REQUEST_BODIES, TrainingConfig, SupervisedConfig, SupervisedRow)
_FIELDS = sorted({name for model in _MODELS for name in model.model_fields})


def problems_of(errors: Iterable[Finding], prefix: Loc = ()) -> list[Problem]:
    """Turn pydantic's errors into problems of a request; `prefix` is the place of the validated part."""
    problems: dict[Loc, Problem] = {}
    for error in errors:
        problem = _problem((*prefix, *error["loc"]), error)
        problems.setdefault(problem.loc, problem)  # a value of a union has an error for each member
    kept = list(problems.values())
    if len(kept) > MAX_PROBLEMS:
        rest = Problem(kept[MAX_PROBLEMS].loc, f"here and in {len(kept) - MAX_PROBLEMS - 1} more places", "more_errors")
        kept[MAX_PROBLEMS:] = [rest]
    return kept


def _problem(loc: Loc, error: Finding) -> Problem:
    kind = error["type"]
    place = _place(loc, with_kinds=kind != "not_finite")  # not_finite isn't pydantic's
    if kind == "union_tag_invalid":  # "Input tag 'x' found using 'type' does not match any of the expected tags: ..."
        return Problem((*place, "type"), f"must be one of {error['msg'].rpartition('tags: ')[2]}", kind)
    return Problem(place, _sentence(loc, kind, error["msg"]), kind)


def _sentence(loc: Loc, kind: str, message: str) -> str:
    if len(loc) > 2 and loc[-3] in _VALUES_OF:
        return _VALUES_OF[loc[-3]]
    if loc[-2:] == ("content", "text"):
        return "must be a string or an array of parts"
    if kind == "extra_forbidden":
        similar = get_close_matches(str(loc[-1])[:MAX_NAME], _FIELDS, n=1)
        return f"isn't known here; did you mean {similar[0]}?" if similar else "isn't known here; leave it out"
    if kind == "json_invalid":
        return f"isn't JSON in UTF-8: {message.removeprefix('Invalid JSON: ')}"
    # "Input should be 'asc' or 'desc'", "List should have at most 10 items", "Value error, ..." with words of our own
    return _SENTENCES.get(kind) or re.sub(r"^\w+ should ", "must ", message.removeprefix("Value error, "))


def _place(loc: Loc, with_kinds: bool) -> Loc:
    """Return the path of the value in the request. Pydantic's path also has names of union members.

    In `messages_and_choices.1.choice.logprobs` that is `choice`, in `metadata.note.float` it is `float`.
    """
    return tuple(
        part if isinstance(part, int) else _name(part)
        for index, part in enumerate(loc)
        if not (with_kinds and _is_kind(loc, index))
    )


def _name(key: str) -> str:
    """Return a key of the request, short and printable."""
    short = key if len(key) <= MAX_NAME else f"{key[:MAX_NAME]}…"
    return short if short.isprintable() else repr(short)[1:-1]


def _is_kind(loc: Loc, index: int) -> bool:
    above, before, is_last = loc[max(index - 2, 0)], loc[max(index - 1, 0)], index == len(loc) - 1
    if before == "content":
        return loc[index] in ("text", "parts")
    if before == "learning_rate":
        return loc[index] in ("number", "list")
    return above in _VALUES_OF or (above in _ITEMS_OF_SEVERAL_KINDS and isinstance(before, int) and not is_last)
