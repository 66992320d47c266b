"""Wire types of training data: groups of trajectories, each with a reward and one or more histories of messages.

Unknown keys are kept (clients attach exceptions, metadata, metrics and logs to a group), but not those that carry data
for training (`unread_fields`).
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from tandem.rl.exchanges.wire import Exchanges
from tandem.rl.plain_data import number
from tandem.rl.tokens.messages import Choice, Hidden, MessageOrChoice, OrNull, PolicyStep, Tool, publish_plain
from tandem.rl.unread_fields import Part, is_for_log, reject_part, reject_unread

__all__ = ["Choice", "History", "MessageOrChoice", "Tool", "Trajectory", "TrajectoryGroup", "choices_of"]

MAX_REWARD = 1e30
"""Larger magnitudes overflow float32 on the way to an advantage."""

NOT_FINITE = ("NaN", "Infinity", "-Infinity")
"""Pydantic's texts for numbers that JSON doesn't have. Clients may send them."""


def _bounded_reward(reward: float) -> float:
    if abs(reward) > MAX_REWARD:
        raise ValueError(f"must lie between -{MAX_REWARD:g} and {MAX_REWARD:g}")
    return reward


def _number_of_code(value: Any, info: ValidationInfo) -> Any:
    """Accept the numbers of numpy, torch and others in code. JSON has only its own."""
    return number(value) if info.mode == "python" else value


def _reward_of_code(value: Any, info: ValidationInfo) -> Any:
    """Accept also a boolean in code: true is 1. An integer that no float can hold becomes infinite, to be rejected."""
    if isinstance(value, str) and value in NOT_FINITE:
        raise ValueError(f"is {value}: a reward must be a finite number; leave the trajectory out, or reward it")
    found = _number_of_code(value, info)
    if isinstance(found, bool):
        return float(found) if info.mode == "python" else found
    try:
        return float(found) if isinstance(found, int) else found
    except OverflowError:
        return math.inf if found > 0 else -math.inf


def _metric_of_code(value: Any, info: ValidationInfo) -> Any:
    """Accept also None in code: the metric isn't known, like 0 of 0."""
    return math.nan if info.mode == "python" and value is None else _number_of_code(value, info)


Reward = Annotated[
    float,
    Field(strict=True, allow_inf_nan=False),
    AfterValidator(_bounded_reward),
    BeforeValidator(_reward_of_code),
]
Metric = Annotated[float | int | bool, BeforeValidator(_metric_of_code)]
Metadata = Annotated[float | int | str | bool | None, BeforeValidator(_number_of_code)]


def _may_train(item: Any) -> bool:
    """True for a choice, an assistant's message, a history or a trajectory; False for another message."""
    return not isinstance(item, dict) or item["role"] == "assistant"


class _WireModel(BaseModel):
    model_config = ConfigDict(extra="allow", json_schema_extra=publish_plain)

    part: ClassVar[Part]
    fields_of_turns: ClassVar[tuple[str, ...]]

    @model_validator(mode="after")
    def _no_unread_data(self, info: ValidationInfo) -> Self:
        if self.model_extra and not is_for_log(info):
            turns = (item for name in self.fields_of_turns for item in getattr(self, name) or ())
            may_train = any(map(_may_train, turns))
            reject_unread(self.part, self.model_extra, trains_nothing=not may_train)
        return self


class History(_WireModel):
    """One conversation of a trajectory: messages in order, sampled turns as the choices that the engine returned."""

    part, fields_of_turns = "history", ("messages_and_choices",)

    messages_and_choices: list[MessageOrChoice]
    tools: list[Tool] | None = None
    """The tools offered to the model."""
    chat_template_kwargs: Hidden[dict[str, Any]] = None
    """More arguments of the chat template; an addition to the published schema."""


def _unread_in_logs(value: Any, validate: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Exchanges | None:
    """Validate exchanges, but not those that are only logged."""
    return None if is_for_log(info) else validate(value)


class Trajectory(_WireModel):
    """One rollout with its reward. `additional_histories` are further conversations that share the reward.

    Its turns are either in `messages_and_choices` and `additional_histories`, or in `exchanges`.
    """

    part, fields_of_turns = "trajectory", ("messages_and_choices", "additional_histories", "exchanges")

    messages_and_choices: list[MessageOrChoice] = []
    tools: list[Tool] | None = None
    chat_template_kwargs: Hidden[dict[str, Any]] = None
    additional_histories: list[History] = []
    exchanges: Annotated[Hidden[Exchanges], WrapValidator(_unread_in_logs)] = None
    reward: Reward = 0
    initial_policy_version: PolicyStep | None = None
    final_policy_version: PolicyStep | None = None
    metrics: dict[str, Metric] = {}
    metadata: dict[str, Metadata] = {}
    logs: list[str] = []
    start_time: OrNull[datetime] = None

    @model_validator(mode="after")
    def _one_form(self, info: ValidationInfo) -> Self:
        if self.exchanges and not is_for_log(info):
            for name in ("messages_and_choices", "tools", "additional_histories", "chat_template_kwargs"):
                if getattr(self, name):
                    reason = f"is sent beside {name}; send the turns in one of the two forms, as the client does"
                    reject_part("trajectory", "exchanges", reason)
        return self

    @property
    def histories(self) -> list[History]:
        """All histories of messages; the first is the trajectory's own."""
        own = History.model_construct(
            messages_and_choices=self.messages_and_choices,
            tools=self.tools,
            chat_template_kwargs=self.chat_template_kwargs,
        )
        return [own, *self.additional_histories]


def _publish_trajectories(schema: dict[str, Any]) -> None:
    """Keep to the published schema, which requires the key."""
    publish_plain(schema)
    del schema["properties"]["trajectories"]["default"]
    schema["required"] = ["trajectories"]


_OF_A_TRAJECTORY = ("messages_and_choices", "additional_histories", "exchanges", "reward")


class TrajectoryGroup(_WireModel):
    """Rollouts of one task: their rewards are compared with each other."""

    model_config = ConfigDict(json_schema_extra=_publish_trajectories)

    part, fields_of_turns = "group", ("trajectories",)

    trajectories: list[Trajectory] = []
    """A client that leaves out empty lists sends none for a group whose rollouts all failed."""

    @model_validator(mode="after")
    def _no_trajectory(self) -> Self:
        """Reject a trajectory in place of a group: its parts would be kept as unknown keys, and nothing would train."""
        if "trajectories" not in self.model_fields_set and set(_OF_A_TRAJECTORY) & set(self.model_extra or ()):
            reject_part(self.part, "trajectories", "is missing, and this is a trajectory; put it into a group's list")
        return self


def choices_of(trajectory: Trajectory) -> list[Choice]:
    """Return the choices in all histories of messages, in order."""
    return [
        turn for history in trajectory.histories for turn in history.messages_and_choices if isinstance(turn, Choice)
    ]
