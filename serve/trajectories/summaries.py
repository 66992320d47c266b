"""What the index keeps of a group and its trajectories: numbers, names and places, never their text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from tandem.rl.advantages import have_spread, reward_std_dev
from tandem.serve.store.uploads.trajectory_index import NewGroup, NewTrajectory
from tandem.serve.trajectories.parts import Exchange, Parts, parts_of, places_in_group

MAX_VALUES = 64
"""Metrics, and values of metadata, that the index keeps of a trajectory."""
MAX_NAME = 128
MAX_VALUE = 256
MAX_ERROR = 500


def summary(group: bytes, index: int, start: int, policy: str) -> tuple[NewGroup, list[NewTrajectory]]:
    """Return the rows of a group whose JSON begins at the offset `start` of its payload.

    `policy` is the model's name, which tells its exchanges from those of others.
    """
    rows, parts = [], []
    for number, place in enumerate(places_in_group(group)):
        found = parts_of(place)
        parts.append(found)
        rows.append(_row(found, index, number, policy, start + place.start, len(place.raw)))
    rewards = [part.reward for part in parts if part.reward is not None]
    rows = [_versioned(row, rows) for row in rows]
    return NewGroup(
        group_index=index,
        size=len(rewards),
        num_failed=len(rows) - len(rewards),
        reward_mean=fmean(rewards) if rewards else None,
        reward_std_dev=reward_std_dev(rewards) if rewards else None,
        reward_min=min(rewards, default=None),
        reward_max=max(rewards, default=None),
        num_tokens=sum(row.num_tokens for row in rows),
        not_trained=_not_trained(parts, rewards),
        start=start,
        num_bytes=len(group),
    ), rows


def _versioned(row: NewTrajectory, group: Sequence[NewTrajectory]) -> NewTrajectory:
    """Return the row of a rollout that failed with the versions of its group: it has no turns that tell them."""
    first = min((one.first_version for one in group if one.first_version is not None), default=None)
    last = max((one.last_version for one in group if one.last_version is not None), default=None)
    if row.reward is not None or row.first_version is not None or first is None:
        return row
    return replace(row, first_version=first, last_version=last)


def _not_trained(parts: Sequence[Parts], rewards: Sequence[float]) -> str | None:
    """Return the reason why nothing of a group can train, as far as its JSON tells: a key of REASONS."""
    if not any(part.exchanges or any(part.turns) for part in parts):
        return "empty"
    if not any(part.exchanges or any(turn.role == "assistant" for turn in part.turns) for part in parts):
        return "no_choices"
    if len(rewards) == 1:
        return "alone_in_group"
    return None if have_spread(rewards) else "equal_rewards"


def _row(parts: Parts, group: int, index: int, policy: str, start: int, num_bytes: int) -> NewTrajectory:
    choices = [turn for turn in parts.turns if turn.is_choice]
    exchanges = [one for one in parts.exchanges if one.is_of(policy)] or parts.exchanges
    versions = [turn.policy_version for turn in choices]
    versions += [version for one in exchanges for version in _versions(one)]
    known = [version for version in (*versions, parts.initial_version, parts.final_version) if version is not None]
    first = min(known, default=None) if parts.initial_version is None else parts.initial_version
    last = max(known, default=None) if parts.final_version is None else parts.final_version
    return NewTrajectory(
        group_index=group,
        trajectory_index=index,
        reward=parts.reward,
        first_version=first,
        last_version=last,
        num_turns=sum(turn.role == "assistant" for turn in parts.turns) + len(exchanges),
        num_tokens=sum(turn.num_tokens for turn in choices) + sum(map(_num_tokens, exchanges)),
        num_tool_calls=sum(_length(turn.message.get("tool_calls")) for turn in parts.turns)
        + sum(map(_num_tool_calls, exchanges)),
        error=parts.error and _text(parts.error, MAX_ERROR),
        metrics=dict(_numbers(parts.metrics)),
        metadata={_text(name, MAX_NAME): value_text(value) for name, value in _bounded(parts.metadata)},
        start=start,
        num_bytes=num_bytes,
    )


def value_text(value: Any) -> str:
    """Return a value of metadata as the text that a filter compares: true, null, 3, or the beginning of a string."""
    match value:
        case str():
            return _text(value, MAX_VALUE)
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return _text(str(value), MAX_VALUE)
    return f"({type(value).__name__})"


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in _bounded(metrics):
        try:
            number = float(value) if isinstance(value, int | float) else math.nan
        except OverflowError:
            continue
        if math.isfinite(number):
            yield _text(name, MAX_NAME), number


def _bounded(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((name, value) for (name, value), _ in zip(values.items(), range(MAX_VALUES), strict=False))


def _text(text: str, limit: int) -> str:
    """Return the beginning of a text without characters that a database can't store."""
    return text[:limit].encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


def _versions(exchange: Exchange) -> Iterator[int]:
    found = [part.get("policy_version") for part in _answers(exchange)]
    known = [version for version in found if type(version) is int and 0 <= version < 2**31]
    if not known and exchange.pinned_version is not None and exchange.pinned_version < 2**31:
        known = [exchange.pinned_version]
    yield from known


def _num_tokens(exchange: Exchange) -> int:
    counts = [_length(part.get("token_ids")) or _length(part.get("output_tokens")) for part in _answers(exchange)]
    usage = exchange.response.get("usage")
    if not any(counts) and isinstance(usage, dict):
        found = usage.get("completion_tokens", usage.get("output_tokens"))
        return found if type(found) is int and 0 <= found < 2**31 else 0
    return sum(counts)


def _num_tool_calls(exchange: Exchange) -> int:
    response = exchange.response
    if exchange.protocol == "responses":
        return sum(str(item.get("type", "")).endswith("_call") for item in _objects(response.get("output")))
    if exchange.protocol == "messages":
        return sum(item.get("type") == "tool_use" for item in _objects(response.get("content")))
    messages = (choice.get("message") for choice in _objects(response.get("choices")))
    return sum(_length(message.get("tool_calls")) for message in messages if isinstance(message, dict))


def _answers(exchange: Exchange) -> list[dict[str, Any]]:
    """Return the parts of an answer that may have tokens and a version of their own."""
    response = exchange.response
    return [response, *_objects(response.get("choices")), *_objects(response.get("token_generations"))]


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0
