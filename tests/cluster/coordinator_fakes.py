"""Stand-ins for the parts that a coordinator uses: a base model, and a store and learners that record their calls."""

import json
import time
import uuid
from contextlib import contextmanager
from dataclasses import replace

import zstandard
from paths import DATA

from tandem.cluster.config import BaseModelConfig, CoordinatorConfig
from tandem.cluster.jobs.coordinator import Coordinator
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.learners.training import SealedVersion
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.rl.batch import build_batch, check_groups
from tandem.rl.config import TrainingConfig
from tandem.rl.gradient_step.size import StepSize

TOKENIZER = DATA / "tokenizer"


class Base:
    """A base model that has only a tokenizer."""

    name = "base"
    config = BaseModelConfig(name="base", path="unused")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def build_batch(self, groups, config, shuffle_seed):
        return build_batch(groups, self.tokenizer, config, max_model_len=256, shuffle_seed=shuffle_seed)

    def check_groups(self, groups, config):
        check_groups(groups, self.tokenizer, config, max_model_len=256)


class RecordingStore:
    """Claims its jobs in order. Successive renewals raise the errors in `renewals` (None: the lease is extended)."""

    def __init__(self, *jobs, renewals=()):
        self.jobs, self.renewals, self.log = list(jobs), list(renewals), []
        self.num_looks = 0  # calls of next_queued
        self.phases = {}  # by attempt, and how it ended

    def claim_next(self, base_model, owner, lease_s):
        return self.jobs.pop(0) if self.jobs else None

    def change_mark(self):
        return None

    def next_queued(self, base_model):
        self.num_looks += 1
        return self.jobs[0] if self.jobs else None

    def renew(self, job, lease_s):
        if self.renewals and (error := self.renewals.pop(0)):
            raise error

    def record_event(self, job, type, data, index=None):
        self.log.append((type, dict(data)))

    def complete(self, job, version, metrics):
        self.log.append(("complete", version.step, version.digest))

    def fail(self, job, error_message, about=None):
        self.log.append(("fail", error_message))

    def cancel(self, job):
        self.log.append(("cancel",))

    def requeue(self, job, reason):
        self.log.append(("requeue", reason))

    def hand_back(self, job, reason):
        self.log.append(("hand_back", reason))

    def report_waiting(self, job, reason):
        self.log.append(("waiting", reason))

    def record_phases(self, job, phases, outcome=None):
        self.phases[job.attempt] = (list(phases), outcome)

    @property
    def order(self):
        return [entry[0] for entry in self.log]


class RecordingLearners:
    """A learner group that only records its calls. Successive steps raise the `failures` (None: the step succeeds)."""

    step_size = StepSize(rows=1)
    waiting_for = None
    is_ready = False

    def __init__(self, failures=(), step_s=0.0, in_step=lambda on_wait: None):
        """`in_step` is called in every step."""
        self.failures, self.step_s, self.in_step, self.log = list(failures), step_s, in_step, []

    @contextmanager
    def training(self, job, num_tokens, warn=None, clock=None):
        """The same object: these learners have one job."""
        self.clock = clock
        yield self

    def start(self, on_wait):
        on_wait()

    def load(self, digest, on_wait, on_wait_turn, fresh_optimizer):
        self.log.append(("load", digest))

    def step(self, sequences, loss, learning_rate, chunk_size, on_wait, on_wait_turn):
        time.sleep(self.step_s)
        self.in_step(on_wait)
        on_wait()
        if self.failures and (error := self.failures.pop(0)):
            raise error
        self.log.append(("step", len(sequences), loss.loss_fn, learning_rate))
        return {"loss/train": float(len(self.log))}

    def finish(self, on_wait):
        self.log.append(("finish",))

    def free_memory(self):
        self.log.append(("free_memory",))

    def seal(self, metadata, on_wait):
        self.log.append(("seal", metadata["step"]))
        return SealedVersion("digest-after", "files")

    def save(self, metadata, on_wait):
        self.log.append(("save", metadata["step"]))
        return "digest-after"


class LocalPreparation:
    """Prepares jobs in this process."""

    def __init__(self, base, artifacts):
        self.worker = PreparationWorker({base.name: base}, artifacts)

    def batch(self, base_model, job, on_wait=None, on_cpu=lambda seconds: None):
        batch, cpu_seconds = self.worker.measured_batch(base_model, job)
        on_cpu(cpu_seconds)
        return batch

    def plot(self, job_id, sequences, on_wait):
        self.worker.plot(job_id, sequences)


def make_coordinator(
    base,
    store,
    artifacts,
    learners,
    engines=(),
    preparation=None,
    score_s=60.0,
    agreement=None,
    asleep=None,
    traces=None,
    **settings,
):
    pool = LogprobPool(base.config.logprobs, base.config.logprob_tolerance, score_s)
    preparation = preparation or LocalPreparation(base, artifacts)
    ahead = PreparingAhead(base.name, store, preparation)
    stages = JobStages(
        base.config, preparation, ahead, learners, JobLogprobs(learners, engines, pool), agreement, asleep, traces
    )
    return Coordinator(CoordinatorConfig(**settings), store, stages)


def choice(*token_ids):
    content = [{"token": f"token_id:{i}", "logprob": -1.0, "bytes": None, "top_logprobs": []} for i in token_ids]
    return {
        "finish_reason": "length", "index": 0, "logprobs": {"content": content},
        "message": {"role": "assistant", "content": "x"},
    }  # fmt: skip


def trajectory(reward, *token_ids):
    return {"messages_and_choices": [{"role": "user", "content": "hi"}, choice(*token_ids)], "reward": reward}


def make_job(artifacts, groups=None, **changes):
    if groups is None:
        groups = [{"trajectories": [trajectory(1.0, 10, 11), trajectory(0.0, 12, 13, 14)]}]
    job_id = str(uuid.uuid4())
    key = f"payloads/{job_id}.json.zst"
    artifacts.write_blob(key, zstandard.compress(json.dumps({"trajectory_groups": groups}).encode()))
    version = PolicyVersion("model", 3, "digest-before")
    job = ClaimedJob(job_id, key, TrainingConfig(), "model", 1, version, 4, 0, policy="team/project/agent")
    return replace(job, **changes)
