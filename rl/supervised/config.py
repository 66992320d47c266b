"""The options of supervised fine-tuning: meaning, default, bounds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from tandem.rl.config import Count, LearningRate, StepIndex
from tandem.rl.tokens.messages import publish_plain

DEFAULT_BATCH_SIZE = 2
DEFAULT_LEARNING_RATE = 5e-5
AssistantTurns = Literal["all", "last"]


def _number_or_list(value: Any) -> str:
    return "list" if isinstance(value, list) else "number"


LearningRates = Annotated[
    Annotated[LearningRate, Tag("number")] | Annotated[list[LearningRate], Field(min_length=1), Tag("list")],
    Discriminator(_number_or_list),
]


class MetricLogging(BaseModel):
    """Where the numbers of each gradient step are logged, beside the job's events."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, json_schema_extra=publish_plain)

    enabled: bool = True
    """true. Adds a log entry (split `sft`) for each gradient step to the model's logs."""
    target_training_step: StepIndex | None = None
    """Unset: the version that the job makes. The step under which the entries are logged."""


class SupervisedConfig(BaseModel):
    """The options of one supervised job. `None` (or leaving it out) means unset: the default applies."""

    model_config = ConfigDict(
        title="SFTTrainingConfig", extra="forbid", strict=True, frozen=True, json_schema_extra=publish_plain
    )

    batch_size: Count | None = None
    """2. Rows of one gradient step, in the order of the data."""
    learning_rate: LearningRates | None = None
    """5e-5. One number, or a list with one for each batch, in order; surplus ones aren't used."""
    assistant_turns: AssistantTurns | None = None
    """all. Which assistant messages of a row are trained: all of them, or the last one, which must end the row."""
    metric_logging: MetricLogging | None = None
    """Unset: nothing is logged beside the events and the version's metrics."""

    @property
    def rows_per_step(self) -> int:
        return self.batch_size or DEFAULT_BATCH_SIZE

    def rates(self, num_batches: int) -> list[float]:
        """Return the learning rate of each batch. Raises ValueError if the list is too short."""
        if self.learning_rate is None or isinstance(self.learning_rate, float | int):
            rate = DEFAULT_LEARNING_RATE if self.learning_rate is None else self.learning_rate
            return [rate] * num_batches
        if len(self.learning_rate) < num_batches:
            raise ValueError(
                f"the list has {len(self.learning_rate)} learning rates, and the data makes {num_batches} batches of "
                f"{self.rows_per_step}; send one for each batch, or a single number"
            )
        return self.learning_rate[:num_batches]
