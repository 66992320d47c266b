"""Built-in algorithms: reinforcement learning on recorded trajectory groups, by the service's own training jobs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.serve.api.wire.requests import Name
from tandem.serve.modelarts.api.envelope import INVALID_REQUEST, INVALID_VALUE, Refused
from tandem.serve.modelarts.api.schemas import Parameter

CHOSEN_BY_ALGORITHM = ("loss_fn", "ppo")


@dataclass(frozen=True)
class Algorithm:
    model_id: int
    name: str
    loss_fn: Literal["cispo", "ppo"]
    usage: str


ALGORITHMS = {
    1: Algorithm(
        1,
        "RL on trajectory groups (CISPO)",
        "cispo",
        "Trains a LoRA policy on JSON Lines of trajectory groups with rewards, with the CISPO loss.",
    ),
    2: Algorithm(
        2,
        "RL on trajectory groups (PPO)",
        "ppo",
        "Trains a LoRA policy on JSON Lines of trajectory groups with rewards, with PPO's clipped loss.",
    ),
}


class AlgorithmOptions(BaseModel):
    """What a run needs beyond the options of its training jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model_name: Name
    """The model that is trained; it is registered when it doesn't exist."""
    project: Name = "training-jobs"
    base_model: str | None = None
    """Unset: the service's first base model."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Trajectory groups of one training job, so of one policy version."""
    num_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """How often the data is gone through."""


@dataclass(frozen=True)
class AlgorithmRun:
    """The parameters of a run, parsed."""

    options: AlgorithmOptions
    config: TrainingConfig


def parse_parameters(algorithm: Algorithm, parameters: Sequence[Parameter]) -> AlgorithmRun:
    """Run parameters, which are text, as typed options. Raises Refused, which names the label."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        label = parameter.label
        if label in values:
            raise Refused(INVALID_REQUEST, f"parameter {label!r} is there twice.", label)
        if label in CHOSEN_BY_ALGORITHM:
            raise Refused(INVALID_VALUE, f"parameter {label!r}: leave it out; model_id chooses the loss.", label)
        known = (*AlgorithmOptions.model_fields, *TrainingConfig.model_fields)
        if label not in known:
            raise Refused(
                INVALID_VALUE, f"parameter {label!r} isn't one of {algorithm.name}; it has {', '.join(known)}.", label
            )
        fields = (
            AlgorithmOptions.model_fields if label in AlgorithmOptions.model_fields else TrainingConfig.model_fields
        )
        values[label] = _typed(parameter.value, fields[label].annotation)
    own = {label: value for label, value in values.items() if label in AlgorithmOptions.model_fields}
    training = {label: value for label, value in values.items() if label not in own}
    try:
        options = AlgorithmOptions.model_validate(own)
        config = TrainingConfig.model_validate({**training, "loss_fn": algorithm.loss_fn})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        label = str(first["loc"][0]) if first["loc"] else "parameter"
        missing = first["type"] == "missing"
        reason = "is missing" if missing else first["msg"].removeprefix("Value error, ")
        raise Refused(INVALID_REQUEST if missing else INVALID_VALUE, f"parameter {label!r}: {reason}.", label) from None
    except ConfigError as error:
        raise Refused(INVALID_VALUE, f"parameter {error.field!r}: {error.reason}", error.field) from None
    return AlgorithmRun(options, config)


def published_parameters() -> str:
    """The parameters of the algorithms, as the API lists them: JSON of label, default value and whether required."""
    fields = {**AlgorithmOptions.model_fields, **TrainingConfig.model_fields}
    return json.dumps(
        [
            {
                "label": label,
                "value": "" if field.is_required() or field.default is None else str(field.default),
                "required": field.is_required(),
            }
            for label, field in fields.items()
            if label not in CHOSEN_BY_ALGORITHM
        ]
    )


def _typed(text: str, annotation: Any) -> Any:
    """ "0.01" as the number and "true" as the boolean that it says, unless the field takes text."""
    if _takes_text(annotation):
        return text
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text


def _takes_text(annotation: Any) -> bool:
    """Whether a field's type has text (or names, which are text) among its values."""
    from typing import get_args, get_origin

    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    return annotation is str or any(_takes_text(part) for part in get_args(annotation))
