"""JSON bodies of OpenAI's API: errors are a 400 whose `param` is the field, like `method.dpo.beta`."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Generic, TypeVar

from fastapi import Request
from pydantic import BaseModel

from tandem.serve.api.bodies.json_body import json_text, parse
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.errors import BadRequestError, InvalidRequestError, Problem

B = TypeVar("B", bound=BaseModel)
# Pydantic's paths name the members of unions, too.
_GRADERS = frozenset({"string_check", "text_similarity", "python", "score_model", "label_model", "multi"})
_MEMBER = re.compile(r"[\[(]|^constrained-|^(str|int|float|list|TextPart)$")


@dataclass(frozen=True)
class Body(Generic[B]):
    """A valid body, and the hash of its bytes."""

    value: B
    sha256: str


def openai_body(model: type[B]) -> Callable[[Request, Services], Awaitable[Body[B]]]:
    """Return a dependency that gives the body as `model`. It raises BadRequestError and the errors of `receive`."""

    async def read(request: Request, services: ServicesDep) -> Body[B]:
        try:
            text = await json_text(request, services)
            return Body(parse(model.model_validate_json, text.raw), sha256(text.raw).hexdigest())
        except InvalidRequestError as error:
            raise BadRequestError(_of_fields(error.problems), error.code) from None

    return read


def refuse(field: str, reason: str, code: str = "invalid_request") -> BadRequestError:
    """Return the error for a field of the body, by its path with dots."""
    return BadRequestError([Problem(("body", *field.split(".")), reason)], code)


def _of_fields(problems: Sequence[Problem]) -> list[Problem]:
    """Return the problems by field. A value of a union has one for each member, which become one sentence."""
    found: dict[tuple[Any, ...], Problem] = {}
    for problem in problems:
        loc = tuple(part for index, part in enumerate(problem.loc) if not _is_kind(problem.loc, index))
        known = found.get(loc)
        msg = problem.msg if known is None or problem.msg in known.msg else f"{known.msg}, or {problem.msg}"
        found[loc] = replace(problem, loc=loc, msg=known.msg if known and problem.msg in known.msg else msg)
    return list(found.values())


def _is_kind(loc: tuple[Any, ...], index: int) -> bool:
    """True for the name of a union's member.

    That of a grader follows `grader`, or the name of one of several `graders`.
    """
    part = loc[index]
    if index == 0 or not isinstance(part, str):
        return False
    if part in _GRADERS:
        return loc[index - 1] == "grader" or (index > 1 and loc[index - 2] == "graders")
    return index > 1 and loc[index - 2] != "graders" and _MEMBER.search(part) is not None
