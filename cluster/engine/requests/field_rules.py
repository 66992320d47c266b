"""Rules for the fields of a request: which are read, and which values of them. Nothing else is accepted.

vLLM's layers for Responses and Messages ignore fields that they don't know.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from tandem.cluster.engine.requests.request_checks import BadRequestError

Rule = Callable[[str, Any], None]
"""Raises BadRequestError for the value of the field at a place. Null means unset, and is always accepted."""


def read(place: str, value: Any) -> None:
    """Accept a field that vLLM reads, and checks."""


def without_effect(place: str, value: Any) -> None:
    """Accept a field that has no effect on an answer, here and at the protocol's author."""


def refused(why: str) -> Rule:
    """Return the rule of a field that isn't supported. `why` is a sentence that says what to do."""

    def rule(place: str, value: Any) -> None:
        raise BadRequestError(f"{place} isn't supported. {why}", place)

    return rule


def only(*values: Any, why: str) -> Rule:
    """Return the rule of a field that has just these values here."""

    def rule(place: str, value: Any) -> None:
        if not any(value is one or (value == one and type(value) is type(one)) for one in values):
            shown = " or ".join(str(one).lower() if isinstance(one, bool) else repr(one) for one in values)
            raise BadRequestError(f"{place} must be {shown}. {why}", place)

    return rule


def check_fields(fields: Mapping[str, Any], rules: Mapping[str, Rule], place: str = "", strictly: bool = True) -> None:
    """Apply the rules to an object's fields. Raise BadRequestError for the first that breaks one.

    Args:
        place: the object's place in the body.
        strictly: refuse fields without a rule.
    """
    for name, value in fields.items():
        inner = f"{place}.{name}" if place else str(name)
        if value is None:
            continue
        if (rule := rules.get(name)) is not None:
            rule(inner, value)
        elif strictly:
            raise BadRequestError(f"{inner[:200]} isn't a field that this service supports here. Leave it out.", inner)


def without(request: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return the fields that are set, without those that vLLM doesn't know."""
    return {name: value for name, value in request.items() if value is not None and name not in names}


SHARED: dict[str, Rule] = dict.fromkeys(
    ("priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params"),
    refused("It would act on an engine that others share. Leave it out; x-request-id names a request."),
)
"""Fields of vLLM in every protocol."""
