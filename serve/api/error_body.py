"""The JSON of an error, in the shape that OpenAI clients read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tandem.cluster.telemetry.redaction import without_keys
from tandem.serve.errors import Problem


def error_body(
    message: str, type: str, code: str | None, param: str | None = None, problems: Sequence[Problem] = ()
) -> dict[str, Any]:
    """Return the body: `error` for people and OpenAI clients, and for problems also `detail`, as FastAPI writes it."""
    shown = None if param is None else without_keys(param)
    body: dict[str, Any] = {"error": {"message": without_keys(message), "type": type, "code": code, "param": shown}}
    if problems:
        body["detail"] = [
            {
                "loc": [without_keys(part) if isinstance(part, str) else part for part in problem.loc],
                "msg": without_keys(problem.msg),
                "type": problem.type,
            }
            for problem in problems
        ]
    return body
