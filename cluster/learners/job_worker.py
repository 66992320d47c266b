"""The jobs of one learner process: an `rl.Learner`, its place in the process group, and its access to checkpoints."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING

from tandem.cluster.artifacts import ADAPTER_FILES, Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig
from tandem.cluster.learners.failures.stacks import Whereabouts, whereabouts
from tandem.cluster.learners.places.devices import RankDevice, compare_devices, learner_device, own_device
from tandem.cluster.learners.places.gpu_memory import limit_gpu_memory
from tandem.cluster.learners.rendezvous import (
    hold_meeting_place,
    init_method,
    meet,
    peers_connected,
    talk_over_rays_network,
)
from tandem.cluster.learners.states.finished_versions import FinishedVersion, FinishedVersions
from tandem.cluster.learners.states.kept_states import KeptStates
from tandem.cluster.learners.states.stored_versions import StoredVersions
from tandem.cluster.learners.step_meter import Measured, StepMeter
from tandem.cluster.placement import Placement
from tandem.cluster.processes.granted_gpus import hide_other_gpus
from tandem.cluster.processes.heap import collection_paused, freeze_heap
from tandem.cluster.processes.low_priority import at_low_priority
from tandem.cluster.telemetry.context import Ids, logged_with
from tandem.cluster.telemetry.setup import Telemetry
from tandem.cluster.telemetry.tracing import span
from tandem.rl.checkpoint_files import MANIFEST
from tandem.rl.errors import LoraLimitError, RLError
from tandem.rl.version_probe import BASE, PREVIOUS, VersionProbe

if TYPE_CHECKING:
    import torch
    from numpy import uint8
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch doesn't declare it as exported

    from tandem.rl.config import Objective
    from tandem.rl.errors import OutOfMemoryError, StepError
    from tandem.rl.gradient_step.out_of_memory import RowLimit
    from tandem.rl.gradient_step.progress import Position
    from tandem.rl.learner import SuspendedTraining
    from tandem.rl.packing import PackedSequence
    from tandem.rl.traces.recording import StepTrace

logger = logging.getLogger(__name__)
PROBE_CHUNK_TOKENS = 1024
WRITING = "writing"
"""The group of Ray calls that may run beside a gradient step."""
WATCHING = "watching"
"""The same for calls that ask how far a step is, which must not wait for a checkpoint."""


@dataclass(eq=False)
class _Session:
    """A job's training on this learner."""

    digest: str | None
    """Of the version in training; None once a step has changed it."""
    probe: list[float]
    """Logprobs of the probe under the version that was loaded; only on rank 0 and those that share its weights."""
    suspended: SuspendedTraining | None = None
    """None while the learner holds this training."""


class JobWorker:
    """Rank `rank` of a learner group, as training jobs use it.

        worker.load(digest, job)
        metrics = worker.step(sequences, loss, learning_rate, chunk_size, job)
        fault = worker.finish(job)                 # on rank 0 and those that share its weights
        digest, files = worker.seal(metadata, job) # on rank 0 only, like the next; beside the steps of other jobs
        digest = worker.write(metadata, job)
        worker.keep(digest, job)

    Several jobs train by turns: before a call for another job, the training that the learner holds is set aside.

    `start` and `step` raise PeerLostError when the connection to another rank breaks.

    Every rank holds the same adapter and optimizer state. A gradient step keeps them the same, because gradients are
    all-reduced before the update, so any rank can write the group's checkpoint.

    With `learners.shard`, neighbouring ranks hold the base weights together. Then `load`, `score`, `step` and `finish`
    run the model in step: all these ranks need the same calls in the same order.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        base: BaseModelConfig,
        artifacts_root: str,
        telemetry: Telemetry | None = None,
        placement: Placement | None = None,
    ):
        """With `telemetry`, this process has no other purpose. `placement` says who shares its GPU."""
        if telemetry:
            telemetry.set_up("learner", base_model=base.name, rank=rank)
        self._rank, self._world_size, self._base, self._placement = rank, world_size, base, placement
        self._artifacts = Artifacts(artifacts_root)
        self._sessions: dict[str, _Session] = {}
        self._finished = FinishedVersions(self._artifacts)
        self._stored = StoredVersions(self._artifacts, base)
        self._traces: dict[str, list[StepTrace]] = {}
        self._ids: dict[str, Ids] = {}  # of jobs, for log lines
        self._active: _Session | None = None  # the learner holds this training
        self._kept = KeptStates(base.learners.kept_state_bytes, base.learners.kept_device_bytes)
        self._meeting: socket.socket | None = None  # on rank 0: the socket at which the ranks meet
        self._store: TCPStore | None = None  # kept for ranks that read from it later than rank 0
        self._base_probe: list[float] = []  # of the base model
        self._fault: Exception | None = None  # that broke this rank's step with those that share its weights
        self._scoring_limit: RowLimit | None = None
        self._meter = StepMeter(base.name, rank)

    def rendezvous(self) -> str:
        """Return the address at which the group meets. Only for rank 0."""
        self._meeting = hold_meeting_place()
        return init_method(self._meeting)

    def start(self, meeting: str | None, timeout_s: float) -> str:
        """Join the process group, load the base model and return the device, for the log.

        `meeting` is what rank 0's `rendezvous` returned; None if there is only one rank.
        """
        hide_other_gpus()
        at_low_priority(_import_learner, "import-learner")  # seconds; an engine may start
        import torch
        import torch.distributed as dist

        from tandem.rl.batch import default_packed_length
        from tandem.rl.learner import Learner
        from tandem.rl.models.freed_memory import keep_freed_memory
        from tandem.rl.policy import Policy

        learners = self._base.learners
        keep_freed_memory()
        torch.set_num_threads(learners.num_threads or max(1, int(learners.num_cpus)))
        device = learner_device(learners.device)
        if self._world_size > 1:
            assert meeting is not None, "several ranks meet at the rendezvous of rank 0"
            talk_over_rays_network()
            backend = "nccl" if device.type == "cuda" else "gloo"
            with peers_connected():
                timeout = timedelta(seconds=timeout_s)
                store = self._store = meet(meeting, self._world_size, timeout, self._meeting)
                compare_devices(store, self._rank, self._world_size, self._own_device(device))
                dist.init_process_group(
                    backend,
                    store=store,
                    rank=self._rank,
                    world_size=self._world_size,
                    timeout=timeout,
                    device_id=device if device.type == "cuda" else None,
                )
        base = ResolvedBaseModel(self._base, self._placement)
        limit_gpu_memory(base, device)
        with base.named_refusal(), peers_connected():
            shard_group = None
            if learners.shard > 1:
                shard_group, _ = dist.new_subgroups(learners.shard, timeout=timedelta(seconds=timeout_s))
            policy = Policy.load(
                base.path,
                device=device.type,
                dtype=learners.dtype,
                attention=learners.attention,
                lora=self._base.lora,
                gradient_checkpointing=learners.gradient_checkpointing,
                max_length=base.max_model_len,
                shard_group=shard_group,
                compile=learners.compile,
            )
            self._base_probe = policy.probe()  # the adapter of version 0 changes nothing
            self._learner = Learner(policy, self._base.optimizer)
            self._learner.warm_up(default_packed_length(0, base.max_model_len, device.type))
            if device.type == "cuda":
                name = torch.cuda.get_device_name(device)
                self._meter = StepMeter(base.name, self._rank, name, base.geometry.work)
        freeze_heap()
        return str(device)

    def _own_device(self, device: torch.device) -> RankDevice:
        return own_device(device)

    def whereabouts(self) -> Whereabouts:
        """Return where this process is. From now on it can be asked for its stacks."""
        return whereabouts()

    def progress(self) -> Position:
        """Return how far this rank is within a step. Called beside the step."""
        return self._learner.progress.position

    def measured(self) -> Measured:
        """Return the speed and memory of this rank's last step. Called beside steps."""
        return self._meter.measured

    def load(
        self, digest: str, job: str = "", fresh_optimizer: bool = False, ids: Ids | None = None
    ) -> LoraLimitError | None:
        """Begin a job's training from a version: from memory, or from a checkpoint after verifying its digests.

        With `fresh_optimizer`, every rank begins without optimizer state, whether it still has one or not.
        The error of a version whose LoRA settings are beyond the limits is returned, on every rank, because the ranks
        can do other work. Lines and spans of the job have the `ids`.
        """
        self.drop(job)
        self._ids[job] = ids or {}
        with self._for_job(job, "load"):
            try:
                self._load(digest, job, fresh_optimizer)
            except LoraLimitError as error:
                return error
            logger.info("Loaded version %s", digest[:12])
            return None

    @contextmanager
    def _for_job(self, job: str, work: str) -> Iterator[None]:
        """Give lines of the block the ids of the job, and trace the work."""
        with logged_with(**self._ids.get(job, {})), span(f"learner {work}", rank=self._rank):
            yield

    def _load(self, digest: str, job: str, fresh_optimizer: bool) -> None:
        active = self._active
        if fresh_optimizer:
            self._set_aside()
            self._learner.load_state(self._stored.adapter(digest))
            # The digest of another state, with the optimizer's: this one can't be kept under it.
            self._active = _Session(None, self._probe_of_loaded([]))
        elif active is not None and active.digest == digest and active not in self._sessions.values():
            self._learner.begin()  # the job before has made this version, and no other one has followed
        else:
            self._set_aside()
            kept = self._kept.take(digest)
            state = kept.state if kept else self._stored.state(digest)
            self._learner.load_state(state)
            self._active = _Session(digest, self._probe_of_loaded(kept.probe if kept else []))
        assert self._active is not None
        self._sessions[job] = self._active

    def _probe_of_loaded(self, known: list[float]) -> list[float]:
        """Return the loaded version's logprobs of the probe, on the ranks that need them."""
        if self._rank >= self._base.learners.shard:
            return known
        policy = self._learner.policy
        with self._in_step():
            # One rank may have kept a version that another has dropped from its memory.
            is_missing = policy.shards.most(not known) if policy.shards else not known
            return policy.probe() if is_missing else known

    @contextmanager
    def _in_step(self) -> Iterator[None]:
        """Run the model in the block. After an error, ranks that share weights can't run it together any more."""
        if self._fault is not None:
            raise self._fault
        try:
            with peers_connected():
                yield
        except Exception as error:
            if self._base.learners.shard > 1:
                self._fault = error
            raise

    def _set_aside(self) -> None:
        """Keep the training that the learner holds, if it is needed again."""
        active, self._active = self._active, None
        if active is None:
            return
        if active in self._sessions.values():
            active.suspended = self._learner.suspend()
        elif active.digest is not None and self._base.learners.kept_state_bytes:
            self._kept.put(active.digest, self._learner.suspend().state, active.probe)

    def _activate(self, job: str) -> _Session:
        """Make the learner hold the job's training, and return it."""
        session = self._sessions[job]
        if session is not self._active:
            assert session.suspended is not None
            self._set_aside()
            self._learner.resume(session.suspended)
            session.suspended = None
            self._active = session
        return session

    def drop(self, job: str) -> None:
        """Forget a job's training. No error if there is none."""
        self._finished.forget(job)
        self._traces.pop(job, None)
        self._ids.pop(job, None)
        session = self._sessions.pop(job, None)
        if session is not None and session is self._active and session.digest is None:
            self._active = None

    def base_probe(self) -> VersionProbe:
        """Return the logprobs of the base model, which an engine must have under version 0."""
        return self._probe(self._base_probe, {})

    def _probe(self, logprobs: list[float], others: dict[str, list[float]]) -> VersionProbe:
        policy = self._learner.policy
        return VersionProbe(policy.probe_token_ids, logprobs, str(policy.dtype), others)

    def score(self, digest: str, rows: Sequence[PackedSequence], chunk_size: int) -> list[Tensor]:
        """Return token-aligned float32 logprobs [T] of packed rows under any version, as `Learner.score` does.

        The state in training stays as it is, and ranks that share no weights with this one aren't needed. Rows that
        don't fit into memory are split; raises OutOfMemoryError if a single sequence doesn't fit. Ranks that share
        weights split no rows.
        """
        from tandem.rl.gradient_step.out_of_memory import RowLimit, score_within_memory

        with self._in_step():
            is_loaded = self._active is not None and self._active.digest == digest
            other = None if is_loaded else self._stored.adapter(digest)
            adapter, lora = (other.adapter, other.lora) if other else (None, None)
            if self._base.learners.shard > 1:  # no rank may split its rows alone
                return self._learner.score(rows, chunk_size, adapter, lora)
            # Apart from the limit of gradient steps, which need far more memory.
            limit = self._scoring_limit = self._scoring_limit or RowLimit()
            return score_within_memory(
                lambda fitting, chunk: self._learner.score(fitting, chunk, adapter, lora), limit, rows, chunk_size
            )

    def probe_version(self, digest: str) -> VersionProbe | RLError | OSError:
        """Return the logprobs of the probe under any version, whose numbers may not be finite.

        The state in training stays as it is. Ranks that share weights with this one make the same call. The error of a
        version that can't be scored is returned, because this rank can do other work.
        """
        import torch

        from tandem.rl.packing import one_segment

        row = one_segment(torch.tensor(self._learner.policy.probe_token_ids))
        try:
            [logprobs] = self.score(digest, [row], PROBE_CHUNK_TOKENS)
        except (RLError, OSError) as error:
            return error
        return self._probe(logprobs[1:].tolist(), {BASE: self._base_probe})

    def step(
        self,
        sequences: Sequence[PackedSequence],
        loss: Objective,
        learning_rate: float,
        logprob_chunk_size: int,
        job: str = "",
    ) -> dict[str, float] | StepError | OutOfMemoryError:
        """Take a gradient step over this rank's share of the packed sequences. All ranks return the same metrics, and
        the seconds that the step took as `time/step_trainer_s`.

        A step that diverges does so on all ranks, and where one rank's memory doesn't suffice, all learn of it. The
        error is returned, because the ranks can take other steps.
        """
        from tandem.rl.errors import OutOfMemoryError, StepError

        self._activate(job).digest = None
        self._meter.begin()
        began = time.perf_counter()
        with self._for_job(job, "gradient step"), self._in_step():
            try:
                metrics = self._learner.step(sequences, loss, learning_rate, logprob_chunk_size)
                logger.info("Took a gradient step in %.3f s", time.perf_counter() - began)
            except StepError as error:
                return error
            except OutOfMemoryError as error:
                if self._base.learners.shard > 1:  # the others wait in the middle of a row
                    raise
                return error
        seconds = time.perf_counter() - began
        self._meter.end(sequences, seconds)
        if len(self._learner.trace.ids):
            self._traces.setdefault(job, []).append(self._learner.trace)
        return metrics | {"time/step_trainer_s": seconds}

    def traces(self, job: str = "") -> StepTrace:
        """Return what this rank has recorded of the job's traced tokens, and forget it."""
        from tandem.rl.traces.recording import StepTrace

        return StepTrace.joined(self._traces.pop(job, []))

    def free_memory(self) -> None:
        """Give memory that torch keeps for a next step back to the GPU."""
        from tandem.rl.gradient_step.out_of_memory import free_memory

        free_memory()

    def finish(self, job: str = "", save: str | None = None) -> StepError | None:
        """Hold the job's version ready for `write`, on rank 0. Return why it can't be used, or None if it can.

        `save` is its name in `seal` and `write`, if that isn't the job's.
        """
        from tandem.rl.errors import StepError

        session = self._activate(job)
        with self._in_step():
            try:
                probe = self._learner.check_finite()
            except StepError as error:
                return error
        if self._rank == 0:
            others = {BASE: self._base_probe, PREVIOUS: session.probe}
            state, config = self._learner.state_in_background(), self._learner.policy.adapter_config()
            self._finished.hold(save or job, FinishedVersion(state, config, self._probe(probe, others)))
        session.probe = probe
        return None

    def seal(self, metadata: dict[str, str | int], job: str = "") -> tuple[str, dict[str, NDArray[uint8]]]:
        """Return the digest of the finished version, and the files of its adapter, before anything is written.

        Ray copies arrays into its object store once, and a process that reads them there doesn't copy them.
        """
        import numpy as np

        sealed = self._finished.seal(job, metadata)
        names = (*ADAPTER_FILES, MANIFEST)
        return sealed.digest, {name: np.frombuffer(sealed.contents[name], np.uint8) for name in names}

    def write(self, metadata: dict[str, str | int], job: str = "") -> str:
        """Write the finished version as a durable checkpoint, with its logprobs of the probe, and return its digest."""
        with self._for_job(job, "write checkpoint"):
            digest = self._finished.write(job, metadata)
            logger.info("Wrote version %s", digest[:12])
            return digest

    def keep(self, digest: str, job: str = "") -> None:
        """End the job's training, whose state a checkpoint has. Keep it in memory for the model's next job."""
        self._finished.forget(job)
        self._ids.pop(job, None)
        session = self._sessions.pop(job)
        session.digest = digest
        if session.suspended is not None and self._base.learners.kept_state_bytes:
            self._kept.put(digest, session.suspended.state, session.probe)


def _import_learner() -> None:
    with collection_paused():
        import_module("tandem.rl.learner")
