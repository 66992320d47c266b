"""Turns stored payloads into packed sequences, and base models into their version 0, in a separate process.

Parsing and tokenising hold Python's interpreter lock for seconds on a large payload, and take memory in proportion. A
separate process keeps API and lease threads responsive, can be ended at a deadline, and is alone in dying when memory
runs out. The calling process needs none of the libraries.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tandem.cluster.artifacts import Artifacts, job_artifact_key
from tandem.cluster.errors import StageError
from tandem.cluster.processes.heap import collection_paused, freeze_heap
from tandem.cluster.processes.low_priority import at_low_priority
from tandem.cluster.processes.ray_failures import stage_error
from tandem.cluster.processes.waiting import WAIT_PERIOD_S, OnWait, wait_on
from tandem.cluster.telemetry.context import Ids, current_ids, logged_with
from tandem.cluster.telemetry.setup import Telemetry
from tandem.cluster.telemetry.tracing import span
from tandem.rl.errors import RLError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tandem.cluster.jobs.job import QueuedJob
    from tandem.cluster.jobs.kinds.kind import Batch
    from tandem.cluster.payloads.early_checks import EarlyChecks
    from tandem.cluster.payloads.rows import RowCounts
    from tandem.rl.base_text import BaseText
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.config import TrainingConfig
    from tandem.rl.packing import PackedSequence
    from tandem.rl.settings import LoraSettings
    from tandem.rl.traces.sent import SentTokens
    from tandem.rl.trajectories import TrajectoryGroup

logger = logging.getLogger(__name__)
MAX_AT_ONCE = 4  # so that small payloads don't wait for a large one
WHO = "the process that prepares jobs"
OnCpu = Callable[[float], None]
_CREATING = threading.Lock()  # the actor has several threads; not its own, because a worker can be pickled
_WORK = {"initial_version": "making a version 0", "import_adapter": "reading the adapter"}


def unmeasured(cpu_seconds: float) -> None:
    """Ignore the cost."""


@dataclass(frozen=True)
class PayloadSource:
    """A stored payload with trajectory groups, of a job or of a log entry."""

    payload_key: str
    policy: str
    """The model as rollouts ask for it: entity/project/name."""
    config: TrainingConfig | None
    """The job's options; None for a log."""


class TextModel(Protocol):
    """The part of a base model that preparation needs."""

    @property
    def text(self) -> BaseText:
        """What turning messages into packed rows needs."""

    def build_batch(
        self, groups: Iterable[TrajectoryGroup], config: TrainingConfig, shuffle_seed: int | None
    ) -> TrainingBatch:
        """Return what a job trains on. Raise TrajectoryError or ConfigError for trajectories that can't be trained."""

    def check_groups(self, groups: Iterable[TrajectoryGroup], config: TrainingConfig) -> None:
        """Raise what `build_batch` raises."""

    def write_initial_version(self, artifacts: Artifacts, lora: LoraSettings | None = None) -> str:
        """Make version 0 durable and return its digest. Raise PolicyError if its adapter can't be made."""

    def write_import(
        self, artifacts: Artifacts, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """Make an adapter in PEFT's files a durable checkpoint. Raise AdapterError if it can't be a version."""


class PreparationWorker:
    """Prepares payloads of the artifact store, and versions 0. A Ray actor in production, a plain object in tests."""

    def __init__(self, base_models: Mapping[str, TextModel], artifacts: Artifacts, telemetry: Telemetry | None = None):
        """With `telemetry`, this process has no other purpose."""
        self._base_models, self._artifacts = base_models, artifacts
        self._warm: set[str] = set()
        self._early: EarlyChecks | None = None
        if telemetry:
            telemetry.set_up("preparation")

    def work(self, ids: Ids, method: str, *arguments: Any) -> Any:
        """Return the result of one of the methods below, called for the request or job of these ids."""
        with logged_with(**ids), span(f"prepare {method}"):
            began = time.monotonic()
            result = getattr(self, method)(*arguments)
            logger.info("%s in %.3f s", method, time.monotonic() - began)
            return result

    def initial_version(self, base_model: str, lora: LoraSettings | None = None) -> str:
        """See `TextModel.write_initial_version`."""
        return self._base_models[base_model].write_initial_version(self._artifacts, lora)

    def import_adapter(
        self, base_model: str, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """See `TextModel.write_import`."""
        return self._base_models[base_model].write_import(self._artifacts, config_file, weights_file, lora, about)

    def warm_up(self, base_model: str) -> None:
        """Load some libraries and the model's tokenizer, so that the first payload doesn't wait for them.

        This leaves the processors to others, such as an engine that starts.
        """
        at_low_priority(partial(self._load, base_model), "warm-up")

    def _load(self, base_model: str) -> None:
        from tandem.rl.config import TrainingConfig

        if base_model not in self._warm:
            with collection_paused():
                self._base_models[base_model].build_batch([], TrainingConfig(), None)
            freeze_heap()
            self._warm.add(base_model)

    def begin_check(self, base_model: str, path: Path, policy: str) -> None:
        """Begin to check a payload that is still arriving in a file of this node, for `check` with the same path."""
        from tandem.cluster.payloads.early_checks import EarlyChecks

        self._load(base_model)
        with _CREATING:
            self._early = self._early or EarlyChecks()
        self._early.begin(path, self._base_models[base_model].check_groups, policy)

    def check(
        self, base_model: str, payload_key: str, config: TrainingConfig, policy: str, arrived: Path | None = None
    ) -> None:
        """Raise the RLError that says why a job of this payload can't be trained, or ArtifactError.

        `policy` is the trained model's name, which tells its exchanges from those of other models. `arrived` is the
        file in which the payload has arrived: if its check began then, the rest is checked now.
        """
        if self._early is not None and arrived is not None and self._early.is_good(arrived, config):
            return
        self._base_models[base_model].check_groups(self._groups(base_model, payload_key, policy), config)

    def batch(self, base_model: str, job: QueuedJob) -> Batch:
        """Return what a job trains on. Raise what `JobKind.build` does."""
        from tandem.cluster.jobs.kinds.registry import KINDS

        self._load(base_model)
        batch: Batch = KINDS[job.kind].build(self._base_models[base_model], self._artifacts, job)
        return batch

    def measured_batch(self, base_model: str, job: QueuedJob) -> tuple[Batch, float]:
        """Return `batch`, and the seconds of CPU time that it took. Tokenizers use this thread alone."""
        began = time.thread_time()
        batch = self.batch(base_model, job)
        return batch, time.thread_time() - began

    def _groups(self, base_model: str, payload_key: str, policy: str) -> Iterator[TrajectoryGroup]:
        from tandem.cluster.payloads.reading import read_groups

        self._load(base_model)
        return read_groups(self._artifacts, payload_key, policy=policy)

    def log_metrics(self, payload_key: str) -> dict[str, float]:
        """Return the size of a log of trajectories and their mean reward. Raise PayloadError or ArtifactError."""
        from tandem.cluster.payloads.reading import read_groups

        rewards: list[float] = []
        num_groups = 0
        for group in read_groups(self._artifacts, payload_key, for_log=True):
            num_groups += 1
            rewards += [trajectory.reward for trajectory in group.trajectories]
        metrics: dict[str, float] = {"num_groups": num_groups, "num_trajectories": len(rewards)}
        return {**metrics, "reward": fmean(rewards)} if rewards else metrics

    def count_rows(self, dataset_key: str) -> RowCounts:
        """Return the counts of a valid dataset. Raise PayloadError or ArtifactError."""
        from tandem.cluster.payloads.rows import count_rows

        return count_rows(self._artifacts, dataset_key)

    def sizes(self, base_model: str) -> tuple[int, int]:
        """Return the number of token ids of a base model, and its longest sequence in tokens."""
        text = self._base_models[base_model].text
        return text.vocab_size or len(text.tokenizer), text.max_model_len

    def token_bytes(self, base_model: str, ids: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token stands for."""
        from tandem.rl.tokens.token_bytes import token_bytes

        return token_bytes(self._base_models[base_model].text.tokenizer, ids)

    def sent_tokens(self, base_model: str, source: PayloadSource, group: int, trajectory: int) -> SentTokens | None:
        """Return the tokens of a trajectory as it was sent, None if the payload has none there.

        Raise PayloadError for a group that isn't valid, or ArtifactError.
        """
        from tandem.cluster.payloads.reading import read_group
        from tandem.rl.traces.sent import sent_tokens

        found = read_group(self._artifacts, source.payload_key, group, source.config is None, source.policy)
        if found is None or trajectory >= len(found.trajectories):
            return None
        return sent_tokens(found, trajectory, self._base_models[base_model].text, source.config)

    def plot(self, job_id: str, sequences: Sequence[PackedSequence]) -> None:
        """Write pictures of packed sequences to the job's artifacts."""
        from tandem.rl.reports.plots import plot_batch

        for name, png in plot_batch(sequences).items():
            self._artifacts.write_blob(job_artifact_key(job_id, name), png)


@dataclass(eq=False)
class _Actor:
    handle: Any
    was_ended: bool = False  # by this process, at a deadline; other calls on the actor are then repeated


class Preparation:
    """Calls a PreparationWorker in an actor of its own, which is started and replaced as needed.

        preparation = Preparation(base_models, artifacts, deadlines.prepare_s)
        preparation.check(base_model, payload_key, config, model.path)

    Thread-safe. Calls raise the worker's RLError and OSError as they are. A missed deadline, a dead worker and any
    other error of the worker become a StageError("prepare").
    """

    def __init__(
        self,
        base_models: Mapping[str, TextModel],
        artifacts: Artifacts,
        deadline_s: float,
        telemetry: Telemetry | None = None,
    ):
        self._arguments, self._deadline_s = (base_models, artifacts, telemetry), deadline_s
        self._lock = threading.Lock()
        self._actor: _Actor | None = None

    def warm_up(self, base_model: str) -> None:
        """Load in the process what a first payload of the model needs, without waiting for it."""
        self._running().handle.warm_up.remote(base_model)

    def stop(self) -> None:
        """End the process. A later call starts another."""
        if actor := self._actor:
            self._end(actor)

    def initial_version(self, base_model: str, lora: LoraSettings | None = None) -> str:
        """See `PreparationWorker.initial_version`."""
        digest: str = self._call("initial_version", (base_model, lora), wait_on)
        return digest

    def import_adapter(
        self, base_model: str, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """See `PreparationWorker.import_adapter`. The files are on this node, as the process is."""
        arguments = base_model, config_file, weights_file, lora, about
        digest: str = self._call("import_adapter", arguments, wait_on)
        return digest

    def begin_check(self, base_model: str, path: Path, policy: str) -> None:
        """See `PreparationWorker.begin_check`. Returns at once, and a failure costs only time."""
        self._running().handle.work.remote(current_ids(), "begin_check", base_model, path, policy)

    def check(
        self,
        base_model: str,
        payload_key: str,
        config: TrainingConfig,
        policy: str,
        arrived: Path | None = None,
        on_wait: OnWait = wait_on,
    ) -> None:
        """See `PreparationWorker.check`."""
        self._call("check", (base_model, payload_key, config, policy, arrived), on_wait)

    def batch(self, base_model: str, job: QueuedJob, on_wait: OnWait = wait_on, on_cpu: OnCpu = unmeasured) -> Batch:
        """Return what the job trains on, which follows from the job alone. Give its CPU seconds to `on_cpu`."""
        batch: Batch
        batch, cpu_seconds = self._call("measured_batch", (base_model, job), on_wait)
        on_cpu(cpu_seconds)
        return batch

    def log_metrics(self, payload_key: str, on_wait: OnWait = wait_on) -> dict[str, float]:
        """See `PreparationWorker.log_metrics`."""
        metrics: dict[str, float] = self._call("log_metrics", (payload_key,), on_wait)
        return metrics

    def count_rows(self, dataset_key: str, on_wait: OnWait = wait_on) -> RowCounts:
        """See `PreparationWorker.count_rows`."""
        counts: RowCounts = self._call("count_rows", (dataset_key,), on_wait)
        return counts

    def sizes(self, base_model: str, on_wait: OnWait = wait_on) -> tuple[int, int]:
        """See `PreparationWorker.sizes`."""
        sizes: tuple[int, int] = self._call("sizes", (base_model,), on_wait)
        return sizes

    def token_bytes(self, base_model: str, ids: Sequence[int], on_wait: OnWait = wait_on) -> list[bytes]:
        """See `PreparationWorker.token_bytes`."""
        found: list[bytes] = self._call("token_bytes", (base_model, ids), on_wait)
        return found

    def sent_tokens(
        self, base_model: str, source: PayloadSource, group: int, trajectory: int, on_wait: OnWait = wait_on
    ) -> SentTokens | None:
        """See `PreparationWorker.sent_tokens`."""
        found: SentTokens | None = self._call("sent_tokens", (base_model, source, group, trajectory), on_wait)
        return found

    def plot(self, job_id: str, sequences: Sequence[PackedSequence], on_wait: OnWait = wait_on) -> None:
        """See `PreparationWorker.plot`."""
        self._call("plot", (job_id, sequences), on_wait)

    def _call(self, method: str, arguments: tuple[Any, ...], on_wait: OnWait) -> Any:
        deadline = time.monotonic() + self._deadline_s
        while True:
            actor = self._running()
            try:
                return self._result(actor, method, arguments, deadline, on_wait)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, (RLError, OSError)):
                    raise error.cause from None
                raise stage_error("prepare", WHO, error) from error
            except ray.exceptions.RayError as error:
                self._end(actor)
                if not actor.was_ended:
                    raise stage_error("prepare", WHO, error) from error
            except BaseException:
                actor.was_ended = True
                self._end(actor)
                raise

    def _result(self, actor: _Actor, method: str, arguments: tuple[Any, ...], deadline: float, on_wait: OnWait) -> Any:
        ref = actor.handle.work.remote(current_ids(), method, *arguments)
        while not ray.wait([ref], timeout=WAIT_PERIOD_S)[0]:
            on_wait()
            if time.monotonic() > deadline:
                raise StageError(
                    "prepare",
                    f"{_WORK.get(method, 'the work on the payload')} took longer than {self._deadline_s:g} s.",
                    "Raise deadlines.prepare_s if the work really takes this long; otherwise check the machine's load.",
                    retryable=True,
                )
        return ray.get(ref)

    def _running(self) -> _Actor:
        with self._lock:
            if self._actor is None:
                # On the node of the caller, so that the death of another node can't end it.
                here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
                worker = ray.remote(PreparationWorker).options(
                    num_cpus=0,
                    scheduling_strategy=here,
                    max_restarts=0,
                    max_concurrency=MAX_AT_ONCE,
                    runtime_env={"env_vars": {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}},
                )
                self._actor = _Actor(worker.remote(*self._arguments))
            return self._actor

    def _end(self, actor: _Actor) -> None:
        with self._lock:
            if self._actor is actor:
                self._actor = None
        ray.kill(actor.handle)
