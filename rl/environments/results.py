"""Check the results of rollouts where they are made, so that every batch can be posted."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from tandem.rl.environments.turns import turns_of
from tandem.rl.errors import RLError
from tandem.rl.exchanges.policy_names import parse
from tandem.rl.plain_data import NotPlainError, Place, finite_number, number, place_text, plain, set_fields
from tandem.rl.trajectories import Trajectory

NO_CHOICE = (
    "rollout() returned a trajectory without a choice, so there is nothing to train; put the choices that chat() "
    "returned into messages_and_choices, unchanged"
)
NO_EXCHANGE = (
    "rollout() returned a trajectory without an exchange of the trained model {model}, so there is nothing to train; "
    "let the agent call the model by chat.model at chat.client.base_url, inside chat.capture()"
)


class ResultError(RLError, ValueError):
    """A rollout returned something that can't be posted and trained.

    Attributes:
        place: the field, like ("metrics", "accuracy"); () for the result as a whole.
        reason: what is wrong, and what to do.
    """

    def __init__(self, place: Place, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        return f"{place_text(self.place)}: {self.reason}" if self.place else self.reason


@dataclass(frozen=True)
class CheckedResult:
    """A trajectory that equals its JSON."""

    trajectory: Trajectory
    dropped_metrics: tuple[str, ...] = ()
    """The names of metrics that were left out because their values aren't finite numbers, like 0 of 0."""


def checked_result(result: object, model: str | None = None) -> CheckedResult:
    """Convert what `rollout` returned into plain data, and validate it as the service does. Raise ResultError.

    A rollout may have changed its trajectory after construction, so all of it is checked. `model` is the name of the
    trained model; exchanges of others don't count.
    """
    if not isinstance(result, Trajectory):
        raise ResultError(
            (), f"rollout() returned {type(result).__name__}; it must return a tandem.rl.trajectories.Trajectory"
        )
    fields = set_fields(result)
    try:
        metrics, dropped = _finite(fields.pop("metrics", {}))
        fields["reward"] = number(fields.get("reward", 0.0))
        if isinstance(fields["reward"], bool | int):
            fields["reward"] = _reward(fields["reward"])
        content = plain(fields | ({"metrics": metrics} if metrics else {}))
        encoded = json.dumps(content, allow_nan=False, ensure_ascii=False).encode()
        trajectory = Trajectory.model_validate_json(encoded)
    except NotPlainError as error:
        raise ResultError(error.place, error.reason) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ResultError(tuple(first["loc"]), first["msg"].removeprefix("Value error, ")) from error
    if trajectory.exchanges is not None and model is not None:
        trajectory.exchanges.of_policy(parse(model).base)
    if not turns_of(trajectory):
        raise ResultError((), NO_EXCHANGE.format(model=model) if trajectory.exchanges else NO_CHOICE)
    return CheckedResult(trajectory, dropped)


def _reward(value: bool | int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finite(metrics: Any) -> tuple[dict[Any, Any], tuple[str, ...]]:
    """Return the metrics without those whose value is None, NaN, or infinite, and the names of the latter."""
    if not isinstance(metrics, Mapping):
        raise NotPlainError(("metrics",), f"they are {type(metrics).__name__}; they must be a dict of numbers by name")
    kept, dropped = {}, []
    for name, value in metrics.items():
        found = number(value)
        if found is not None and not isinstance(found, bool | int | float):
            raise NotPlainError(("metrics", _text(name)), f"it is {type(value).__name__}; metrics are numbers")
        finite = finite_number(found)
        if finite is None:
            dropped.append(_text(name))
        else:
            kept[name] = finite
    return kept, tuple(dropped)


def _text(name: Any) -> str:
    """Return a metric's name as text that UTF-8 has."""
    if isinstance(name, str):
        return name.encode(errors="backslashreplace").decode()
    return f"a key that is {type(name).__name__}"
