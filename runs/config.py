"""The task file of a run: everything that `tandem train TASK.yaml` can be told.

Importing this module needs neither torch nor Ray, so that a mistake in a file is said at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.rl.config import TrainingConfig
from tandem.runs.errors import TaskFileError

NAME_PATTERN = r"^\w[\w.-]{0,127}$"
RESERVED_SAMPLING = ("model", "messages", "tools", "n", "stream", "logprobs")
"""What a rollout's requests set themselves."""
OWN_FIELDS = ("temperature", "max_tokens")


def _free(sampling: dict[str, Any]) -> dict[str, Any]:
    if reserved := [name for name in RESERVED_SAMPLING if name in sampling]:
        raise ValueError(f"can't have {', '.join(reserved)}: a rollout's requests set that themselves")
    if own := [name for name in OWN_FIELDS if name in sampling]:
        raise ValueError(f"can't have {', '.join(own)}: that is a field of its own")
    return sampling


Sampling = Annotated[dict[str, Any], AfterValidator(_free)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class EnvironmentConfig(Section):
    """Where tasks and rewards come from."""

    class_: str = Field(
        alias="class",
        description="The environment: `package.module:Class`, or `path/to/file.py:Class` relative to the task file.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the class.")


class ModelConfig(Section):
    """The policy that is trained: `entity/project/name` on a base model."""

    base_model: str = Field("tandem/tiny", description="A base model of the service.")
    project: str = Field("runs", pattern=NAME_PATTERN, description="The project that the model is registered in.")
    name: str | None = Field(None, pattern=NAME_PATTERN, description="The model's name. Unset: the name of the run.")
    entity: str | None = Field(
        None, pattern=NAME_PATTERN, description="Whose model it is. Unset: the entity of the API key."
    )
    go_on: bool = Field(
        False,
        description="Train a model further that has versions already. Without it, a new run refuses such a model.",
    )


class ServiceConfig(Section):
    """The service that the run talks to. The API key is never in a file: it comes from TANDEM_API_KEY."""

    url: str | None = Field(
        None, pattern="^https?://", description="Of a running service. Unset: TANDEM_URL, else one is found or started."
    )
    config: Path | None = Field(
        None, description="The tandem.yaml to start a service with, relative to the task file. Unset: the tiny model."
    )
    patience_s: float = Field(
        600, gt=0, description="How long the service may fail to answer requests of a kind before the run ends."
    )

    @model_validator(mode="after")
    def _one_way(self) -> ServiceConfig:
        if self.url and self.config:
            raise ValueError("url is of a service that runs, config is what one is started with; leave one of them out")
        return self


class RolloutsConfig(Section):
    """How the policy is sampled for training."""

    groups_per_job: int = Field(32, ge=1, le=100_000, description="Tasks of one batch, which is one training job.")
    group_size: int = Field(
        8, ge=2, le=1024, description="Rollouts of each task; their rewards are compared with each other."
    )
    concurrency: int = Field(256, ge=1, description="Rollouts that run at the same time; at least one group does.")
    timeout_s: float = Field(300, gt=0, description="How long one rollout may take, with all its turns.")
    temperature: float = Field(
        1.0, ge=0, le=10, description="Of sampling. Training compares logprobs at temperature 1."
    )
    max_tokens: int | None = Field(None, ge=1, description="Of one turn. Unset: what the model has room for.")
    sampling: Sampling = Field(
        {}, description="Further fields of each chat completion request, like top_p or stop, or vLLM's own."
    )
    share_requests: bool = Field(
        True,
        description="Rollouts that ask for the same turn in the same moment, like a group's first, ask in one request. "
        "Cheaper for the service, but each waits for the longest of these turns: turn it off for agents of many turns "
        "whose first one is long.",
    )
    max_failed_fraction: float = Field(
        0.2, ge=0, le=1, description="The run ends when a larger share of a batch's rollouts fails."
    )

    def max_shared(self, rollouts_of_a_task: int) -> int:
        """The most turns of one request."""
        return rollouts_of_a_task if self.share_requests else 1


class TrainConfig(Section):
    """How many jobs, how far rollouts may run ahead, and what each job is told."""

    jobs: int = Field(ge=1, le=1_000_000, description="Training jobs of the run; each makes one version.")
    max_policy_lag: int = Field(
        1,
        ge=0,
        le=1000,
        description="How many versions older than the one a batch is trained on the policy may be that sampled it. "
        "0 is strictly on-policy: rollouts wait for training and training for rollouts.",
    )
    experimental_config: TrainingConfig = Field(
        TrainingConfig(), description="Options of each training job, like learning_rate and loss_fn."
    )


class EvaluationConfig(Section):
    """Rollouts on the environment's eval split, each evaluation on one pinned version, beside training."""

    every: int = Field(5, ge=1, description="Versions from one evaluation to the next; the first and last always are.")
    tasks: int | None = Field(None, ge=1, description="How many tasks, the first of the split. Unset: all.")
    samples_per_task: int = Field(1, ge=1, le=1024, description="Rollouts of each task.")
    concurrency: int = Field(64, ge=1, description="Evaluation rollouts that run at the same time.")
    temperature: float = Field(0.0, ge=0, le=10, description="Of sampling; 0 takes the likeliest token.")
    sampling: Sampling = Field({}, description="Further fields of each request. Unset: those of rollouts.")


class OutputConfig(Section):
    """What the run leaves behind."""

    directory: Path | None = Field(
        None,
        description="Of state, metrics and plot. Unset: runs/NAME in the service's home (~/.tandem); relative paths "
        "are relative to that home, because a Ray job's working directory is a temporary one.",
    )
    keep_batches: bool = Field(False, description="Keep the trajectories of every batch, not only of the open one.")


class TaskConfig(Section):
    """A whole run."""

    name: str = Field(pattern=NAME_PATTERN, description="The run's name, and its directory's.")
    seed: int = Field(0, description="Of the order of tasks.")
    environment: EnvironmentConfig
    model: ModelConfig = ModelConfig()
    service: ServiceConfig = ServiceConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    training: TrainConfig
    evaluation: EvaluationConfig | None = Field(None, description="Unset: the run isn't evaluated.")
    output: OutputConfig = OutputConfig()

    @property
    def model_name(self) -> str:
        return self.model.name or self.name


def load_task(path: str | Path) -> TaskConfig:
    """Reads a task file. Raises TaskFileError, which lists the faults."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise TaskFileError(f"The task file {path} can't be read: {error.strerror}.") from error
    try:
        content = _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise TaskFileError(f"The task file {path} isn't YAML: {error}") from error
    if not isinstance(content, dict):
        raise TaskFileError(f"The task file {path} must have fields, at least name, environment and training.")
    try:
        return TaskConfig.model_validate(content)
    except ValidationError as error:
        raise TaskFileError(f"The task file {path} is not valid:\n{_faults(error)}") from None


class _Loader(yaml.SafeLoader):
    """YAML, with 1e-3 a number as in YAML 1.2; to PyYAML alone it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _faults(error: ValidationError) -> str:
    return "\n".join(f"  {'.'.join(map(str, e['loc'])) or 'the file'}: {_sentence(e)}" for e in error.errors())


def _sentence(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such field; docs/train.md lists them all"
    return fault["msg"].removeprefix("Value error, ")
