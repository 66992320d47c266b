"""The task file of a run: all settings of `tandem train TASK.yaml`.

This module imports neither torch nor Ray, so that a mistake in a file is reported at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tandem.rl.config import TrainingConfig
from tandem.rl.yaml_files import YamlFileError, load_mapping
from tandem.runs.errors import TaskFileError
from tandem.runs.sampling import MAX_TEMPERATURE, Sampling, SamplingFields, check_min_tokens, similar_field

MAX_S = 31 * 86400  # a month; far longer durations overflow the timers of libraries
NAME_PATTERN = r"^\w[\w.-]{0,127}$"


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)


class EnvironmentConfig(Section):
    """The source of tasks and rewards."""

    class_: str = Field(
        alias="class",
        description="The environment: `package.module:Class`, `path/to/file.py:Class` relative to the task file, or "
        "`verifiers:NAME`. `environment: NAME` is short for a class without options.",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the class.")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"class": value} if isinstance(value, str) else value


class ModelConfig(Section):
    """The policy to train: `entity/project/name` on a base model."""

    base_model: str = Field("tandem/tiny", description="A base model of the service.")
    project: str = Field("runs", pattern=NAME_PATTERN, description="The model's project.")
    name: str | None = Field(None, pattern=NAME_PATTERN, description="The model's name. Default: the run's name.")
    entity: str | None = Field(
        None, pattern=NAME_PATTERN, description="The model's entity. Default: the entity of the API key."
    )
    go_on: bool = Field(
        False,
        description="Allow a new run to continue training a model that already has versions.",
    )


class ServiceConfig(Section):
    """The service that the run uses. The API key is never in a file; it comes from TANDEM_API_KEY."""

    url: str | None = Field(
        None,
        pattern="^https?://",
        description="URL of a running service. Default: TANDEM_URL, else one is found or started.",
    )
    config: Path | None = Field(
        None,
        description="tandem.yaml of a service to start, relative to the task file. Default: the tiny model.",
    )
    patience_s: float = Field(
        600, gt=0, le=MAX_S, description="How long requests of one kind may go unanswered before the run ends."
    )

    @model_validator(mode="after")
    def _one_way(self) -> ServiceConfig:
        if self.url and self.config:
            raise ValueError("url names a running service and config starts a new one; set only one of them")
        return self


class RolloutsConfig(Section):
    """Sampling of the policy for training."""

    groups_per_job: int = Field(32, ge=1, le=100_000, description="Tasks per batch; a batch is one training job.")
    group_size: int = Field(
        8, ge=2, le=1024, description="Rollouts per task; their rewards are compared with each other."
    )
    concurrency: int = Field(256, ge=1, description="Rollouts that run at the same time, and at least one group.")
    timeout_s: float = Field(300, gt=0, le=MAX_S, description="Time limit of one rollout with all its turns.")
    temperature: float = Field(
        1.0, ge=0, le=MAX_TEMPERATURE, description="Sampling temperature. Training compares logprobs at temperature 1."
    )
    max_tokens: int | None = Field(None, ge=1, description="Token limit of one turn. Default: the model's limit.")
    sampling: Sampling = Field(
        default_factory=SamplingFields,
        description="More fields of each chat completion request, like top_p, stop, or vLLM's own.",
    )
    share_requests: bool = Field(
        True,
        description="Let rollouts that request the same turn at once, like a group's first, share one request. "
        "This is cheaper for the service, but each waits for the longest of these turns: turn it off for agents with "
        "many turns whose first turn is long.",
    )
    max_failed_fraction: float = Field(
        0.2, ge=0, le=1, description="The run ends if a larger fraction of a batch's rollouts fails."
    )

    @model_validator(mode="after")
    def _room_for_min_tokens(self) -> RolloutsConfig:
        check_min_tokens(self.sampling, self.max_tokens)
        return self

    def max_shared(self, rollouts_of_a_task: int) -> int:
        """Return the largest number of turns that share one request."""
        return rollouts_of_a_task if self.share_requests else 1


class TrainConfig(Section):
    """The number of jobs, how far rollouts may run ahead, and the options of each job."""

    jobs: int = Field(ge=1, le=1_000_000, description="Number of training jobs; each makes one version.")
    max_policy_lag: int = Field(
        1,
        ge=0,
        le=1000,
        description="How many versions older the policy that samples a batch may be than the one that it trains. "
        "0 is strictly on-policy: rollouts wait for training, and training for rollouts.",
    )
    experimental_config: TrainingConfig = Field(
        TrainingConfig(), description="Options of each training job, like learning_rate and loss_fn."
    )


class EvaluationConfig(Section):
    """Rollouts on the environment's eval split beside training, each evaluation on one version."""

    every: int = Field(5, ge=1, description="Versions between evaluations; the first and the last always are.")
    tasks: int | None = Field(None, ge=1, description="Number of tasks, from the start of the split. Default: all.")
    samples_per_task: int = Field(1, ge=1, le=1024, description="Rollouts per task.")
    concurrency: int = Field(64, ge=1, description="Evaluation rollouts that run at the same time, at least one task.")
    temperature: float = Field(0.0, ge=0, le=MAX_TEMPERATURE, description="Sampling temperature; 0 is greedy.")
    sampling: Sampling = Field(
        default_factory=SamplingFields, description="More fields of each request. Default: those of rollouts."
    )


class JudgeConfig(Section):
    """A model that scores the rollouts of a group relative to each other; its scores are the rewards."""

    model: str = Field(
        description="The judge: a model of the service (a base model, or a version like `entity/project/name:step3`), "
        "or of `judge.url`."
    )
    rubric: str | None = Field(
        None, description="The grading standards. Default: reaching the goal, then efficiency, then progress."
    )
    weight: float = Field(1.0, gt=0, description="The reward is the score, from 0 to 1, times this.")
    add_to_reward: bool = Field(False, description="Add that to the environment's reward, instead of replacing it.")
    attempts: int = Field(
        3, ge=1, le=10, description="Answers asked for at most; one that can't be read is returned with its fault."
    )
    max_tokens: int | None = Field(None, ge=1, description="Token limit of an answer. Default: the model's limit.")
    temperature: float | None = Field(0.0, ge=0, le=MAX_TEMPERATURE, description="Sampling temperature of the judge.")
    sampling: dict[str, Any] = Field(
        {}, description="More fields of each request, like chat_template_kwargs. They aren't checked."
    )
    url: str | None = Field(
        None, pattern="^https?://", description="An OpenAI-compatible endpoint to ask instead of the service."
    )
    api_key_variable: str = Field("OPENAI_API_KEY", description="The environment variable with the key of `judge.url`.")


class OutputConfig(Section):
    """The run's files."""

    directory: Path | None = Field(
        None,
        description="Directory of state, metrics and plot. Default: runs/NAME in the service's home (~/.tandem). "
        "Relative paths are relative to that home, because a Ray job's working directory is temporary.",
    )
    keep_batches: bool = Field(False, description="Keep the trajectories of all batches, not only of the current one.")
    send_rollouts: bool = Field(
        True, description="Send evaluations, and rollouts that failed, to the service, which shows them on its page."
    )


class TaskConfig(Section):
    """A run."""

    name: str = Field(pattern=NAME_PATTERN, description="Name of the run and its directory.")
    seed: int = Field(0, description="Seed of the order of tasks.")
    environment: EnvironmentConfig
    model: ModelConfig = ModelConfig()
    service: ServiceConfig = ServiceConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    training: TrainConfig
    judge: JudgeConfig | None = Field(None, description="Default: the environment's rewards alone.")
    evaluation: EvaluationConfig | None = Field(None, description="Default: no evaluation.")
    output: OutputConfig = OutputConfig()

    @property
    def model_name(self) -> str:
        return self.model.name or self.name


def load_task(path: str | Path) -> TaskConfig:
    """Read a task file. Raise TaskFileError with all mistakes."""
    try:
        content = load_mapping(path)
    except YamlFileError as error:
        raise TaskFileError(f"The task file {error}") from None
    try:
        return TaskConfig.model_validate(content)
    except ValidationError as error:
        raise TaskFileError(f"The task file {path} is not valid:\n{_faults(error)}") from None


def _faults(error: ValidationError) -> str:
    return "\n".join(f"  {'.'.join(map(str, e['loc'])) or 'the file'}: {_sentence(e)}" for e in error.errors())


def _sentence(fault: Any) -> str:
    if fault["type"] == "extra_forbidden" and "sampling" in fault["loc"]:
        return f"the engine has no such field{similar_field(fault['loc'][-1])}"
    if fault["type"] == "extra_forbidden":
        return "there is no such field; docs/train.md lists them all"
    return str(fault["msg"]).removeprefix("Value error, ")
