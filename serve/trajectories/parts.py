"""The parts of a trajectory as it was sent, in any wire form, without the numbers of its tokens.

Jobs are validated when they are accepted, but logs may carry any data, so nothing here relies on the type of a field:
a value of another type counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from tandem.cluster.payloads.cut_logprobs import address_of
from tandem.rl.exchanges.policy_names import is_policy, parse
from tandem.rl.exchanges.wire import PROTOCOLS

NUMBERS = frozenset(
    {"logprobs", "compact_logprobs", "compact_top_logprobs", "token_logprobs", "prompt_logprobs", "top_logprobs"}
    | {"token_ids", "prompt_token_ids", "tokens", "output_tokens", "token_offsets", "routed_experts"}
    | {"policy_token_spans", "prompt_policy_token_spans"}
)
"""Fields with the numbers of tokens, which have no text for readers."""
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
Json = dict[str, Any]
T = TypeVar("T")


class _Turn(msgspec.Struct, gc=False):
    finish_reason: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()
    logprobs: msgspec.Raw = msgspec.Raw()
    token_ids: msgspec.Raw = msgspec.Raw()
    policy_version: msgspec.Raw = msgspec.Raw()


class _Logprobs(msgspec.Struct, gc=False):
    content: msgspec.Raw = msgspec.Raw()
    refusal: msgspec.Raw = msgspec.Raw()


class _History(msgspec.Struct, gc=False):
    messages_and_choices: msgspec.Raw = msgspec.Raw()


class _Trajectory(_History, gc=False):
    additional_histories: msgspec.Raw = msgspec.Raw()
    exchanges: msgspec.Raw = msgspec.Raw()
    reward: msgspec.Raw = msgspec.Raw()
    initial_policy_version: msgspec.Raw = msgspec.Raw()
    final_policy_version: msgspec.Raw = msgspec.Raw()
    metrics: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()
    logs: msgspec.Raw = msgspec.Raw()
    error: msgspec.Raw = msgspec.Raw()
    exception: msgspec.Raw = msgspec.Raw()


class _Group(msgspec.Struct, gc=False):
    trajectories: msgspec.Raw = msgspec.Raw()
    exceptions: msgspec.Raw = msgspec.Raw()
    metadata: msgspec.Raw = msgspec.Raw()


@dataclass(frozen=True)
class Turn:
    """A message of a history, or the message of a choice."""

    message: Json
    is_choice: bool
    num_tokens: int = 0
    """Sampled tokens of a choice, as far as it says."""
    policy_version: int | None = None

    @property
    def role(self) -> str:
        role = self.message.get("role")
        return role if isinstance(role, str) else "assistant" if self.is_choice else ""


@dataclass(frozen=True)
class Exchange:
    """A request of an agent and its answer."""

    protocol: str
    request: Json
    response: Json
    model: str | None

    def is_of(self, policy: str) -> bool:
        return self.model is not None and is_policy(self.model, policy)

    @property
    def pinned_version(self) -> int | None:
        return None if self.model is None else parse(self.model).step


@dataclass(frozen=True)
class Parts:
    """A trajectory, or a rollout that failed without one, which has an `error` and nothing else."""

    histories: tuple[tuple[Turn, ...], ...]
    exchanges: tuple[Exchange, ...]
    reward: float | None
    initial_version: int | None
    final_version: int | None
    metrics: Json
    metadata: Json
    logs: tuple[str, ...]
    error: str | None

    @property
    def turns(self) -> Iterator[Turn]:
        for history in self.histories:
            yield from history


@dataclass(frozen=True)
class Place:
    """A part of a group's JSON: its offset there, its bytes, and whether it is a rollout that failed."""

    start: int
    raw: bytes
    is_failure: bool


def places_in_group(group: bytes) -> list[Place]:
    """Return the trajectories of a group in order, then its exceptions: rollouts that failed."""
    found = _struct(group, _Group)
    if found is None:
        return []
    # The memory of each part is a slice of the group's.
    start_of_group = address_of(group)
    return [
        Place(address_of(raw) - start_of_group, bytes(raw), is_failure)
        for part, is_failure in ((found.trajectories, False), (found.exceptions, True))
        for raw in _items(part)
    ]


def parts_of(place: Place) -> Parts:
    """Return the parts of a trajectory, or of a rollout that failed."""
    if place.is_failure:
        value = _value(place.raw)
        text, about = error_text(value) or "The rollout failed.", _dict(value)
        version = _step(about.get("policy_version"))
        return Parts((), (), None, version, version, {}, _dict(about.get("metadata")), (), text)
    found = _struct(place.raw, _Trajectory) or _Trajectory()
    histories = [found, *(_struct(raw, _History) or _History() for raw in _items(found.additional_histories))]
    logs = _value(found.logs)
    metadata = _object(found.metadata)
    errors = (_value(found.exception), _value(found.error), metadata.get("exception"), metadata.get("error"))
    return Parts(
        histories=tuple(tuple(map(_turn, _items(history.messages_and_choices))) for history in histories),
        exchanges=tuple(_exchanges(_object(found.exchanges))),
        reward=_number(_value(found.reward), 0.0),
        initial_version=_step(_value(found.initial_policy_version)),
        final_version=_step(_value(found.final_policy_version)),
        metrics=_object(found.metrics),
        metadata=metadata,
        logs=tuple(line for line in logs if isinstance(line, str)) if isinstance(logs, list) else (),
        error=next((text for text in map(error_text, errors) if text), None),
    )


def error_text(value: Any) -> str | None:
    """Return an exception as a sentence: a text, or an object with its type and message."""
    match value:
        case str():
            return value or None
        case {"message": str(message), **rest}:
            kind = rest.get("type")
            return f"{kind}: {message}" if isinstance(kind, str) else message
        case {"type": str(kind)}:
            return kind
        case [first, *_]:
            return error_text(first)
    return None


def _turn(raw: msgspec.Raw) -> Turn:
    found = _struct(raw, _Turn)
    if found is None or not (found.finish_reason and found.message):
        return Turn(_object(raw), is_choice=False)
    ids = _items(found.token_ids)
    if not ids:
        logprobs = _struct(found.logprobs, _Logprobs) or _Logprobs()
        ids = _items(logprobs.content) or _items(logprobs.refusal)
    return Turn(_object(found.message), True, len(ids), _step(_value(found.policy_version)))


def _exchanges(found: Json) -> Iterator[Exchange]:
    for protocol in PROTOCOLS:
        listed = found.get(protocol)
        for one in listed if isinstance(listed, list) else ():
            if not isinstance(one, dict):
                continue
            request, response = (_dict(one.get(name)) for name in ("request", "response"))
            names = (request.get("model"), response.get("model"), one.get("model"))
            model = next((name for name in names if isinstance(name, str)), None)
            yield Exchange(protocol, request, response, model)


def _struct(raw: bytes | msgspec.Raw, type: type[T]) -> T | None:
    if not raw:
        return None
    try:
        return msgspec.json.decode(raw, type=type)
    except _FAULTS:
        return None


def _items(raw: msgspec.Raw) -> list[msgspec.Raw]:
    return _struct(raw, list[msgspec.Raw]) or []


def _value(raw: bytes | msgspec.Raw) -> Any:
    if not raw:
        return None
    try:
        return msgspec.json.decode(raw)
    except _FAULTS:
        return None


def _object(raw: msgspec.Raw) -> Json:
    return _dict(_value(raw))


def _dict(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _number(value: Any, otherwise: float) -> float:
    try:
        return float(value) if isinstance(value, int | float) else otherwise
    except OverflowError:
        return otherwise


def _step(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None
