"""The parameters of built-in algorithms: options of a run, and options of its training jobs, sent as text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.serve.api.wire.requests import Name
from tandem.serve.modelarts.errors import INVALID_REQUEST, INVALID_VALUE, RejectedError
from tandem.serve.modelarts.settings.algorithms import Algorithm
from tandem.serve.modelarts.settings.run_settings import Parameter

SET_BY_ALGORITHM = ("loss_fn", "ppo")


class AlgorithmOptions(BaseModel):
    """Options of a run, beside those of its training jobs."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    model_name: Name
    """The model to train. It is registered if it doesn't exist."""
    project: Name = "training-jobs"
    base_model: str | None = None
    """Default: the first base model of the service."""
    batch_size: Annotated[int, Field(ge=1, le=100_000)] = 8
    """Trajectory groups per training job, which makes one policy version."""
    num_epochs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Passes over the data."""


@dataclass(frozen=True)
class AlgorithmParameters:
    """The parsed parameters of a run."""

    options: AlgorithmOptions
    training: TrainingConfig


_FIELDS = AlgorithmOptions.model_fields | TrainingConfig.model_fields


def parse_parameters(algorithm: Algorithm, parameters: Sequence[Parameter]) -> AlgorithmParameters:
    """Return the parameters as typed options. Raises RejectedError, which names the label."""
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    for index, parameter in enumerate(parameters):
        label, place = parameter.label, f"parameter[{index}].label"
        if label in values:
            raise _rejected(INVALID_REQUEST, place, label, "is sent twice; send it once")
        if label in SET_BY_ALGORITHM:
            raise _rejected(INVALID_VALUE, place, label, "leave it out; model_id sets the loss")
        if label not in _FIELDS:
            known = ", ".join(name for name in _FIELDS if name not in SET_BY_ALGORITHM)
            raise _rejected(INVALID_VALUE, place, label, f"{algorithm.name} has no such parameter; it has {known}")
        places[label] = f"parameter[{index}].value"
        values[label] = _typed(parameter.value, _FIELDS[label].annotation)
    own = {label: value for label, value in values.items() if label in AlgorithmOptions.model_fields}
    training = {label: value for label, value in values.items() if label not in own}
    try:
        return AlgorithmParameters(
            AlgorithmOptions.model_validate(own),
            TrainingConfig.model_validate({**training, "loss_fn": algorithm.loss_fn}),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        label = str(first["loc"][0]) if first["loc"] else "parameter"
        if first["type"] == "missing":
            raise _rejected(INVALID_REQUEST, "parameter", label, "is missing; send it") from None
        reason = re.sub(r"^\w+ should ", "must ", first["msg"].removeprefix("Value error, "))
        raise _rejected(INVALID_VALUE, places.get(label, "parameter"), label, reason) from None
    except ConfigError as error:
        raise _rejected(INVALID_VALUE, places.get(error.field, "parameter"), error.field, error.reason) from None


def _rejected(code: str, place: str, label: str, reason: str) -> RejectedError:
    return RejectedError(code, f"{place}: {label!r}: {reason.removesuffix('.')}.", place)


def listed_parameters() -> str:
    """Return the parameters as the API lists them: JSON text of label, default value and whether it is required."""
    return json.dumps(
        [
            {
                "label": label,
                "value": "" if field.is_required() or field.default is None else str(field.default),
                "required": field.is_required(),
            }
            for label, field in _FIELDS.items()
            if label not in SET_BY_ALGORITHM
        ]
    )


def _typed(text: str, annotation: Any) -> Any:
    """Return the number or boolean that the text stands for, or the text itself where the field takes text."""
    if _takes_text(annotation):
        return text
    try:
        value = json.loads(text, parse_constant=lambda _: text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, int | float | bool) else text


def _takes_text(annotation: Any) -> bool:
    """True if a field of this type takes text."""
    if get_origin(annotation) is Literal:
        return all(isinstance(value, str) for value in get_args(annotation))
    return annotation is str or any(_takes_text(part) for part in get_args(annotation))
