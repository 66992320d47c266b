"""Results of rollouts: whatever user code returns or raises, it is posted as the service accepts it or left out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import sys
import uuid
from collections import deque
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_chat import turn

from tandem.cluster.payloads.strict_json import not_finite_place
from tandem.rl import plain_data
from tandem.rl.environments.base import Environment
from tandem.rl.environments.results import ResultError, checked_result
from tandem.rl.environments.rollouts import RolledOutGroup, roll_out_group
from tandem.rl.plain_data import MAX_SIZE, finite_number, number
from tandem.rl.trajectories import Trajectory, TrajectoryGroup

QUESTION = {"role": "user", "content": "hi"}
SURROGATE = b"caf\xe9".decode("utf-8", "surrogateescape")


class Returning(Environment[Any]):
    """Returns what its task, a function, returns."""

    def tasks(self, split: str) -> list[Any]:
        return []

    async def rollout(self, chat: Any, task: Any) -> Any:
        return task()


def roll_out(make: Any) -> RolledOutGroup:
    return asyncio.run(roll_out_group(lambda _: None, Returning(), make, 1, timeout_s=60))


def trajectory(**fields: Any) -> Trajectory:
    """Return a trajectory whose fields were set after its construction, so that nothing has validated them."""
    made = Trajectory(messages_and_choices=[QUESTION, turn("hello")], reward=1.0)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def posted(group: RolledOutGroup) -> dict[str, Any]:
    """Return the trajectory as the service reads it. Fail if the service would reject it."""
    assert group.failures == (), group.failures
    content = group.group.model_dump_json(exclude_unset=True).encode()
    TrajectoryGroup.model_validate_json(content)
    assert not_finite_place(content) is None
    return json.loads(content)["trajectories"][0]


class Colour(Enum):
    RED = "red"
    ONE = 1


class Level(IntEnum):
    HIGH = 3


@dataclasses.dataclass
class Point:
    x: float


NUMBERS = [
    (True, 1),
    (np.float32(0.5), 0.5),
    (np.float16(0.5), 0.5),
    (np.float64(0.5), 0.5),
    (np.int64(2), 2),
    (np.uint8(2), 2),
    (np.bool_(True), 1),
    (np.array(0.5), 0.5),
    (np.array([0.5]), 0.5),
    (torch.tensor(0.5), 0.5),
    (torch.tensor([[0.5]], requires_grad=True), 0.5),
    (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
    (torch.tensor(True), 1),
    (Decimal("0.5"), 0.5),
    (Fraction(1, 2), 0.5),
    (Colour.ONE, 1),
    (Level.HIGH, 3),
]


@pytest.mark.parametrize(("value", "expected"), NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers_of_any_library_are_numbers(value, expected):
    def construct() -> Trajectory:
        return Trajectory(
            messages_and_choices=[QUESTION, turn("hello")], reward=value, metrics={"m": value}, metadata={"m": value}
        )

    for make in (construct, lambda: trajectory(reward=value, metrics={"m": value}, metadata={"m": value}, own=value)):
        found = posted(roll_out(make))
        assert found["reward"] == found["metrics"]["m"] == found["metadata"]["m"] == expected
        assert type(found["reward"]) is float


@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, None, np.float32("nan"), torch.tensor(math.inf), Decimal("sNaN"), 10**400),
        *(Fraction(10**400), Decimal("1e400")),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_metric_that_isnt_finite_is_left_out_and_named(value):
    group = roll_out(lambda: trajectory(metrics={"accuracy": value, "turns": 2}))
    assert posted(group)["metrics"] == {"turns": 2} and group.dropped_metrics == ("accuracy",)


def test_names_of_metrics_that_are_left_out_can_be_printed():
    group = roll_out(lambda: trajectory(metrics={SURROGATE: math.nan, 3: math.nan}))
    assert posted(group) and group.dropped_metrics[0].encode() == b"caf\\udce9"


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float32("nan"), 10**400, 1e31, None, "1.0", "high", [1], {}])
def test_a_reward_that_isnt_a_finite_number_leaves_the_rollout_out(value):
    group = roll_out(lambda: trajectory(reward=value))
    [failure] = group.failures
    assert isinstance(failure.error, ResultError) and failure.error.place == ("reward",)
    assert not group.group.trajectories


def test_large_integers_of_metrics_are_floats():
    assert posted(roll_out(lambda: trajectory(metrics={"n": 2**70})))["metrics"] == {"n": 2.0**70}


CONVERTED = [
    (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (torch.ones(2), [1.0, 1.0]),
    ((1, 2), [1, 2]),
    ({3}, [3]),
    (deque([1]), [1]),
    (MappingProxyType({"a": 1}), {"a": 1}),
    ({2: "a", None: "b", 1.5: "c"}, {"2": "a", "null": "b", "1.5": "c"}),
    (b"text", "text"),
    (Path("/tmp/a"), "/tmp/a"),
    (uuid.UUID(int=1), str(uuid.UUID(int=1))),
    (datetime(2026, 1, 2, 3, 4), "2026-01-02T03:04:00"),
    (date(2026, 1, 2), "2026-01-02"),
    (timedelta(seconds=90), 90.0),
    (Colour.RED, "red"),
    (Point(np.float32(0.5)), {"x": 0.5}),
    (turn, ...),
    ("a\x00b", "a\x00b"),
    (2**100, 2**100),
    (Decimal("0.25"), 0.25),
]


def short(value):
    """Return a name that is the same in every process, so without addresses."""
    return getattr(value, "__name__", repr(value)[:30])


@pytest.mark.parametrize(("value", "expected"), CONVERTED, ids=short)
def test_other_values_become_plain_data_or_leave_the_rollout_out(value, expected):
    group = roll_out(lambda: trajectory(own={"deep": [value]}))
    if expected is ...:
        assert group.failures[0].error.place == ("own", "deep", 0)
    else:
        assert posted(group)["own"]["deep"] == [expected]


def circular() -> list[Any]:
    own: list[Any] = []
    own.append(own)
    return own


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def doubling() -> list[Any]:
    nested: list[Any] = ["x"]
    for _ in range(60):
        nested = [nested, nested]
    return nested


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    __str__ = __repr__

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"logs": ["fine", SURROGATE]}, ("logs", 1)),
        ({"logs": [3]}, ("logs", 0)),
        ({"logs": "text"}, ("logs",)),
        ({"logs": ["x" * (MAX_SIZE + 1)]}, ("logs", 0)),
        ({"metadata": {"x": math.nan}}, ("metadata", "x")),
        ({"metadata": {"x": {}}}, ("metadata", "x")),
        ({"metrics": {SURROGATE: 1.0}}, ("metrics", SURROGATE)),
        ({"metrics": {"x": "high"}}, ("metrics", "x")),
        ({"metrics": {"x": {"y": 1}}}, ("metrics", "x")),
        ({"metrics": [1]}, ("metrics",)),
        ({"metrics": {(1, 2): 1.0}}, ("metrics",)),
        ({"own": {"1": 1, 1: 2}}, ("own", "1")),
        ({"own": object()}, ("own",)),
        ({"own": 1j}, ("own",)),
        ({"own": 10**5000}, ("own",)),
        ({"own": math.inf}, ("own",)),
        ({"own": np.array([1.0, math.nan])}, ("own", 1)),
        ({"own": b"\xff"}, ("own",)),
        ({"own": (x for x in [1])}, ("own",)),
        ({"own": Hostile()}, ("own",)),
        ({"own": sys.stdout.write}, ("own",)),
        ({"own": circular()}, ("own", 0, 0)),
        ({"own": deep()}, ("own", 0, 0)),
        ({"own": Trajectory}, ("own",)),
        ({"start_time": "yesterday"}, ("start_time",)),
        ({"initial_policy_version": -1}, ("initial_policy_version",)),
        ({"messages_and_choices": None}, ("messages_and_choices",)),
        ({"messages_and_choices": [QUESTION]}, ()),
        (
            {"messages_and_choices": [QUESTION, turn("a"), {"role": "critic", "content": "x"}]},
            ("messages_and_choices", 2),
        ),
        (
            {"messages_and_choices": [QUESTION, turn("a"), {"role": "user", "content": SURROGATE}]},
            ("messages_and_choices", 2, "content"),
        ),
        ({"tools": [{"type": "function", "function": {"name": 3}}]}, ("tools", 0, "function", "name")),
        ({"additional_histories": [3]}, ("additional_histories", 0)),
    ],
    ids=lambda value: repr(value)[:40] if isinstance(value, tuple) else next(iter(value)),
)
def test_results_that_cant_be_sent_are_left_out_with_their_place(fields, place):
    group = roll_out(lambda: trajectory(**fields))
    [failure] = group.failures
    assert isinstance(failure.error, ResultError) and failure.error.place[: len(place)] == place
    failure.cause.encode()  # can be printed
    assert not group.group.trajectories


def test_shared_parts_dont_multiply_without_limit(monkeypatch):
    monkeypatch.setattr(plain_data, "MAX_VALUES", 10_000)
    [failure] = roll_out(lambda: trajectory(own=doubling())).failures
    assert isinstance(failure.error, ResultError) and failure.error.place[0] == "own"


def test_numpy_in_messages_is_converted():
    tail = {"role": "tool", "tool_call_id": "c", "content": "ok", "score": np.float32(0.5)}
    found = posted(roll_out(lambda: trajectory(messages_and_choices=(QUESTION, turn("a"), tail))))
    assert found["messages_and_choices"][2]["score"] == 0.5


@pytest.mark.parametrize("result", [None, 3, "text", {}, [], (), Trajectory, QUESTION, Hostile()], ids=type)
def test_other_results_are_left_out(result):
    [failure] = roll_out(lambda: result).failures
    assert isinstance(failure.error, ResultError)


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    "error",
    [
        *(
            SystemExit(3),
            KeyboardInterrupt(),
            GeneratorExit(),
            asyncio.CancelledError(),
            BaseException("odd"),
            Silent(),
        ),
        *(RecursionError(), MemoryError(), StopIteration(1), StopAsyncIteration(), RuntimeError(SURROGATE)),
        *(ExceptionGroup("a", [ValueError()]), BaseExceptionGroup("a", [KeyboardInterrupt()]), TimeoutError()),
        UnicodeEncodeError("ascii", SURROGATE, 0, 1, "x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_rollout_raises_leaves_it_out(error):
    def fail() -> None:
        raise error

    [failure] = roll_out(fail).failures
    assert str(failure).startswith("rollout 0")


def test_a_rollout_that_recurses_without_end_is_left_out():
    def recurse() -> Any:
        return recurse()

    assert isinstance(roll_out(recurse).failures[0].error, RecursionError)


# Anything

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(2**63) - 1, 2**64]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(),
    st.characters(categories=["Cs"]),
    st.binary(max_size=8),
    st.decimals(),
    st.fractions(),
    st.datetimes(),
    st.sampled_from([np.float32("nan"), np.int8(3), np.bool_(False), torch.tensor(2.0), Colour.RED, 1j]),
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(), st.none()), inner, max_size=4),
    ),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.one_of(
        st.just(turn("hello")),
        st.just(QUESTION),
        st.builds(lambda content, own: {"role": "user", "content": content, "own": own}, ANYTHING, ANYTHING),
        st.builds(lambda key, value: {**turn("hello"), key: value}, st.sampled_from([*turn("hello"), "own"]), ANYTHING),
        ANYTHING,
    ),
    max_size=4,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "reward": st.one_of(st.floats(), ANYTHING),
        "metrics": st.one_of(st.dictionaries(st.text(max_size=4), st.one_of(st.floats(), ANYTHING)), ANYTHING),
        "metadata": st.one_of(st.dictionaries(st.text(max_size=4), SCALARS), ANYTHING),
        "logs": st.one_of(st.lists(st.text()), ANYTHING),
        "messages_and_choices": st.one_of(MESSAGES, ANYTHING),
        "additional_histories": st.lists(
            st.one_of(st.builds(lambda m: {"messages_and_choices": m}, MESSAGES), ANYTHING), max_size=2
        ),
        "tools": ANYTHING,
        "start_time": ANYTHING,
        "initial_policy_version": ANYTHING,
        "chat_template_kwargs": ANYTHING,
        "own": ANYTHING,
    },
)


@given(FIELDS)
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_any_result_is_accepted_by_the_service_or_left_out_with_a_cause(fields):
    try:
        checked = checked_result(trajectory(**fields))
    except ResultError as error:
        str(error).encode()
        return
    posted(RolledOutGroup(TrajectoryGroup(trajectories=[checked.trajectory]), ()))
    assert all(math.isfinite(value) for value in checked.trajectory.metrics.values())


@given(st.dictionaries(st.text(max_size=3), st.floats(width=32), max_size=3), st.floats(-1e30, 1e30))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_what_can_be_sent_is_sent_unchanged(metrics, reward):
    found = posted(roll_out(lambda: trajectory(metrics=metrics, reward=reward)))
    assert found["reward"] == reward
    assert found.get("metrics", {}) == {name: value for name, value in metrics.items() if math.isfinite(value)}


@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_numbers_of_python_stay_as_they_are(integer, real):
    assert number(integer) == integer and number(real) == real and finite_number(real) == real
