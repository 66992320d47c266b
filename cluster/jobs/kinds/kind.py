"""What a kind of training job defines. Everything else about jobs is the same for all kinds.

A job's row names its kind. Acceptance, claims, leases, retries, cancellation, learners, checkpoints and publishing
don't depend on it. A new kind is a subclass of `JobKind` in a file of its own, an entry in `registry`, and a route.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel

from tandem.rl.steps import Learners

if TYPE_CHECKING:
    from torch import Tensor

    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.jobs.job import ClaimedJob, QueuedJob
    from tandem.cluster.jobs.preparation import TextModel
    from tandem.rl.gradient_step.size import StepSize
    from tandem.rl.packing import PackedSequence
    from tandem.rl.traces.sequences import TracedSequence


class Batch(Protocol):
    """What a job trains on, made by the preparation process and sent to the coordinator."""

    @property
    def sequences(self) -> Sequence[PackedSequence]:
        """All packed rows of the job, empty if there is nothing to learn."""

    @property
    def traced(self) -> Sequence[TracedSequence]:
        """The sequences of the rows, in the order of their trace ids."""


class JobWork(Learners, Protocol):
    """The learners, which hold the version that the job starts from, and what else its steps may need."""

    @property
    def learning_rate(self) -> float:
        """Of jobs that set none."""

    def score(self, digest: str, rows: Sequence[PackedSequence], chunk_size: int) -> list[Tensor]:
        """Return the token-aligned logprobs [T] of each row under a version, as `Learner.score` does."""

    def plot(self, rows: Sequence[PackedSequence]) -> None:
        """Keep pictures of rows among the job's files."""


@dataclass(frozen=True)
class Outline:
    """What is known about a job when its batch is prepared."""

    num_steps: int
    """Gradient steps that `JobKind.steps` yields."""
    started: Mapping[str, float]
    """The data of training_started."""
    metrics: Mapping[str, float]
    """Metrics of the version, to which those of the last gradient step are added."""
    warnings: Sequence[Mapping[str, Any]]
    """The data of warning events."""


@dataclass(frozen=True)
class Log:
    """An entry in the logs of the job's model."""

    split: str
    metrics: Mapping[str, float]


Options = TypeVar("Options", bound=BaseModel)
B = TypeVar("B", bound=Batch)


class JobKind(ABC, Generic[Options, B]):
    """One kind of job. It has no state: the same job gives the same steps in every attempt."""

    name: ClassVar[str]
    """In the job's row."""
    options: type[Options]
    """Of the job's options (`config` in its row)."""
    remedy: ClassVar[str]
    """A sentence for jobs whose data can't be trained."""

    def options_of(self, job: QueuedJob) -> Options:
        """Return the job's options."""
        assert isinstance(job.config, self.options), (self.name, type(job.config))
        return job.config

    @abstractmethod
    def build(self, base: TextModel, artifacts: Artifacts, job: QueuedJob) -> B:
        """Read the job's payload and return what it trains on. Runs in the preparation process.

        It depends on the job alone. Raises RLError for data that can't be trained, and OSError of the artifacts.
        """

    @abstractmethod
    def outline(self, batch: B, job: ClaimedJob, step_size: StepSize) -> Outline:
        """Describe the job before its first step."""

    @abstractmethod
    def steps(self, batch: B, job: ClaimedJob, work: JobWork) -> Iterator[dict[str, float]]:
        """Take the gradient steps, and yield the metrics of each one after it.

        Raises StepError for numbers that can't be trained on.
        """

    def event(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Return the data of the gradient_step event of a step with these metrics."""
        return metrics

    def summary(self, metrics: Mapping[str, float]) -> Mapping[str, float]:
        """Return the metrics of the version, from those of the last gradient step."""
        return metrics

    def log(self, options: Options, event: Mapping[str, float], index: int, step: int) -> Log | None:
        """Return the log entry that accompanies the event of a gradient step, if any.

        `index` is the gradient step's, from 0; `step` is that of the version that the job makes.
        """
        return None
