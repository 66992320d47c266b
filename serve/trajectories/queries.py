"""Reads the filters of a list of trajectories. A name that isn't a filter is refused: it would filter nothing."""

from __future__ import annotations

import math
from typing import NamedTuple
from uuid import UUID

from fastapi import Request

from tandem.serve.api.services import Services
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem
from tandem.serve.names import quoted
from tandem.serve.store.tables.training import ModelRow
from tandem.serve.store.uploads.trajectory_search import Range
from tandem.serve.trajectories.summaries import MAX_NAME, value_text

METADATA, METRIC = "metadata.", "metric."
FORBIDDEN_IN_NAMES = '"\\\0'
"""Characters that the databases' paths into JSON can't have."""
MAX_CONDITIONS = 16


class Conditions(NamedTuple):
    """Filters whose names the sender chooses."""

    metadata: dict[str, str]
    metrics: dict[str, Range]


def read_conditions(request: Request) -> Conditions:
    """Return `metadata.KEY=VALUE`, `metric.NAME.min=NUMBER` and `metric.NAME.max=NUMBER` of a query.

    Raises InvalidRequestError for them, and for names that the route doesn't declare.
    """
    declared = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    metadata: dict[str, str] = {}
    bounds: dict[str, dict[str, float]] = {}
    problems: list[Problem] = []
    seen: set[str] = set()
    for name, value in request.query_params.multi_items():
        try:
            if name in seen:
                raise ValueError("is sent more than once; send it once")
            seen.add(name)
            if name.startswith(METADATA):
                metadata[_checked(name.removeprefix(METADATA))] = value_text(value)
            elif name.startswith(METRIC):
                metric, _, bound = name.removeprefix(METRIC).rpartition(".")
                if bound not in ("min", "max"):
                    raise ValueError(f"must end in .min or .max, like {METRIC}NAME.min=0.5")
                bounds.setdefault(_checked(metric), {})[bound] = _number(value)
            elif name not in declared:
                raise ValueError(f"isn't a filter; the filters are {_listed(sorted(declared))}")
        except ValueError as error:
            problems.append(Problem(("query", quoted(name)[1:-1]), str(error)))
    if len(metadata) + len(bounds) > MAX_CONDITIONS:
        problems.append(Problem(("query",), f"has more than {MAX_CONDITIONS} conditions on metadata and metrics"))
    if problems:
        raise InvalidRequestError(problems)
    metrics = {name: Range(of_name.get("min"), of_name.get("max")) for name, of_name in bounds.items()}
    return Conditions(metadata, metrics)


def refuse_unknown(request: Request) -> None:
    """A dependency of routes whose filters all have a fixed name. Raises InvalidRequestError for another name."""
    declared = {parameter.alias for parameter in request.scope["route"].dependant.query_params}
    unknown = [name for name in request.query_params if name not in declared]
    if unknown:
        message = f"isn't a filter; the filters are {', '.join(sorted(declared))}"
        raise InvalidRequestError([Problem(("query", quoted(name)[1:-1]), message) for name in unknown])


def find_model(services: Services, text: str, entity: str) -> ModelRow:
    """Return the model that a filter names: its id, entity/project/name or project/name. Raises NotFoundError."""
    models = services.store.models
    try:
        return models.get(str(UUID(text)), entity)
    except ValueError:
        pass
    parts = text.split("/")
    if len(parts) == 2:
        parts = [entity, *parts]
    row = models.find(entity, parts[1], parts[2]) if len(parts) == 3 and parts[0] == entity else None
    if row is None:
        raise NotFoundError(
            f"There is no model {quoted(text)}: name it by its id or as entity/project/name.",
            "model_not_found",
            "model",
        )
    return row


def number_range(least: float | None, most: float | None, name: str) -> Range:
    """Return the range of two parameters. Raises InvalidRequestError for a number that isn't finite."""
    for bound, value in (("min", least), ("max", most)):
        if value is not None and not math.isfinite(value):
            raise InvalidRequestError([Problem(("query", f"{name}_{bound}"), "must be a finite number")])
    return Range(least, most)


def _checked(name: str) -> str:
    if not name or len(name) > MAX_NAME or any(character in FORBIDDEN_IN_NAMES for character in name):
        raise ValueError(f"must name a key of 1 to {MAX_NAME} characters without quotes and backslashes")
    return name


def _number(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _listed(names: list[str]) -> str:
    return ", ".join([*names, f"{METADATA}KEY", f"{METRIC}NAME.min", f"{METRIC}NAME.max"])
