"""A job keeps what its tokens were trained with, and neither delays nor fails for it."""

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinator_fakes import RecordingStore, make_coordinator, make_job, trajectory

from tandem.cluster.artifacts import Artifacts, traces_key
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, LearnersConfig, ProjectConfig, TandemConfig, TrajectoriesConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.traces import JobTraces
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.config import TrainingConfig
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.packing import one_segment
from tandem.rl.traces.trace_file import TraceFile

CONFIG = BaseModelConfig(
    name="tandem/tiny", path="builtin:tiny", max_model_len=256, learners=LearnersConfig(device="cpu")
)


class OneLearner:
    """A learner group with one learner, in this process, which several jobs use one after the other."""

    step_size = StepSize(rows=1)
    is_ready, waiting_for = True, None

    def __init__(self, worker, traces):
        self.worker, self.written, self.job = worker, traces, ""

    @contextmanager
    def training(self, job, num_tokens, warn, clock):
        self.job, self.clock = job, clock
        yield self

    def start(self, on_wait):
        pass

    def load(self, digest, on_wait, on_wait_turn, fresh_optimizer):
        self.worker.load(digest, self.job, fresh_optimizer)

    def scorers(self, digest, chunk_size):
        return [lambda rows, timeout_s: self.worker.score(digest, rows, chunk_size)]

    def step(self, sequences, loss, rate, chunk_size, on_wait, on_wait_turn):
        return self.worker.step(sequences, loss, rate, chunk_size, self.job)

    def finish(self, on_wait):
        assert self.worker.finish(self.job) is None

    def traces(self):
        found = self.worker.traces(self.job)
        return lambda: found

    def save(self, metadata, on_wait):
        self.written._writer.submit(lambda: None).result()  # the traces are written, or have failed
        digest = self.worker.write(metadata, self.job)
        self.worker.keep(digest, self.job)
        return digest


class Failing(Artifacts):
    def write_blob(self, key, data):
        if key.startswith("traces/"):
            raise OSError("the disk is full")
        super().write_blob(key, data)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def worker(artifacts):
    worker = LearnerWorker(0, 1, CONFIG, str(artifacts.checkpoints_dir.parent))
    worker.start(None, 60)
    return worker


@pytest.fixture(scope="module")
def zero(artifacts):
    return ResolvedBaseModel(CONFIG).write_initial_version(artifacts)


GROUPS = [{"trajectories": [trajectory(1.0, 100 + i, 11, 50), trajectory(0.0, 12, 13 + i, 14)]} for i in range(4)]
OPTIONS = {"learning_rate": 0.01, "packed_sequence_length": 48}


def run(artifacts, worker, zero, settings=None, keeps=lambda entity: True, groups=GROUPS, like=None, **options):
    """Return the job, its store's record and the attempt's file of traces, None if there is none."""
    settings = TrajectoriesConfig() if settings is None else settings
    config = TrainingConfig(**{**OPTIONS, **options})
    job = make_job(artifacts, groups, config=config, attempt=2, reference_digest=zero)
    job = like or replace(job, version=PolicyVersion("model", 0, zero))
    traces = JobTraces(artifacts, settings, keeps)
    store = RecordingStore(job)
    make_coordinator(ResolvedBaseModel(CONFIG), store, artifacts, OneLearner(worker, traces), traces=traces).run_next()
    traces._writer.shutdown()
    key = traces_key(job.id, 2)
    return job, store.log, key if key in artifacts.list_blobs(f"traces/{job.id}") else None


def read(artifacts, key):
    file = TraceFile.open(artifacts.open_blob(key))
    return file.table, {entry.group: file.group(entry.group) for entry in file.table.groups}


def test_traces_of_the_first_step_are_those_of_the_version_that_the_job_starts_from(artifacts, worker, zero):
    """The numbers are worked out by hand, the logprobs are those of a plain forward pass."""
    _, log, key = run(artifacts, worker, zero, precalculate_logprobs=True, kl_penalty_coef=0.5)
    assert log[-1][0] == "complete"
    num_steps = sum(entry[0] == "gradient_step" for entry in log)
    table, groups = read(artifacts, key)
    assert (table.kind, table.num_trained, table.num_trained_not_kept) == ("rl", 24, 0)
    assert sorted(groups) == [0, 1, 2, 3]
    worker.load(zero, "check")
    for group, (first, second) in groups.items():
        assert [first.trajectory, second.trajectory, first.history] == [0, 1, 0]
        # Rewards 1 and 0: mean 0.5, deviation 0.5. All have as many tokens, so the normalised advantages are 1 and -1.
        assert [first.advantage, second.advantage] == pytest.approx([1.0, -1.0], abs=1e-6)
        assert [first.weight, second.weight] == pytest.approx([1.0, 1.0], abs=1e-6)
        for one, sampled in ((first, [100 + group, 11, 50]), (second, [12, 13 + group, 14])):
            assert one.token_ids[one.loss_mask].tolist() == sampled
            assert one.sampling_logprobs[one.loss_mask].tolist() == [-1.0] * 3
            assert np.isnan(one.learner_logprobs[~one.loss_mask]).all()
            [turn] = one.turns
            assert (turn.begin, turn.num_tokens, turn.index) == (len(one.token_ids) - 3, 3, 1)
            row = one_segment(torch.from_numpy(one.token_ids.astype(np.int64)))
            expected = worker._learner.score([row])[0].numpy()[one.loss_mask]
            assert one.old_logprobs[one.loss_mask] == pytest.approx(expected, abs=1e-5)
            assert one.ref_logprobs[one.loss_mask] == pytest.approx(expected, abs=1e-5)
            difference = np.abs(one.learner_logprobs[one.loss_mask] - expected).max()
            assert difference < 1e-5 if one.gradient_step == 0 else difference > 1e-4
    steps = {one.gradient_step for sequences in groups.values() for one in sequences}
    assert steps == set(range(num_steps)) and num_steps > 1
    assert worker._traces == {}


def test_traces_change_no_version(artifacts, worker, zero):
    """Bitwise. The seed of the order of rows is the job's id."""
    job, log, _ = run(artifacts, worker, zero)
    for traces in ("sample", "none"):
        _, other, _ = run(artifacts, worker, zero, TrajectoriesConfig(traces=traces, trace_groups=2), like=job)
        assert other[-1] == log[-1]


def test_a_configuration_limits_them_and_the_job_says_how_many_it_lacks(artifacts, worker, zero):
    _, log, key = run(artifacts, worker, zero, TrajectoriesConfig(traces="sample", trace_groups=1))
    table, groups = read(artifacts, key)
    assert (len(groups), table.num_trained, table.num_trained_not_kept, table.num_groups_not_kept) == (1, 6, 18, 3)
    [warning] = [data for type_, *rest in log if type_ == "warning" for data in rest]
    assert (warning["kind"], warning["counts"]) == ("traces_not_kept", {"tokens": 18, "groups": 3})
    _, log, key = run(artifacts, worker, zero, TrajectoriesConfig(max_trace_bytes=0))
    assert (key, log[-1][0]) == (None, "complete")
    for none in (
        {"settings": TrajectoriesConfig(traces="none")},
        {"keeps": TandemConfig(projects={"team": ProjectConfig(keep_trajectories=False)}).keeps_trajectories},
    ):
        _, log, key = run(artifacts, worker, zero, **none)
        assert (key, [type_ for type_, *_ in log if type_ == "warning"]) == (None, [])
    assert worker._traces == {}


def test_a_failure_to_write_is_a_warning_and_the_version_is_there(worker, zero, artifacts):
    failing = Failing(str(artifacts.checkpoints_dir.parent))
    _, log, key = run(failing, worker, zero)
    [warning] = [data for type_, *rest in log if type_ == "warning" for data in rest]
    assert (key, log[-1][0], warning["kind"]) == (None, "complete", "traces_not_kept")
    assert "the disk is full" in warning["message"]


def test_an_attempt_replaces_the_traces_of_those_before(artifacts, worker, zero):
    job = make_job(artifacts, GROUPS, config=TrainingConfig(**OPTIONS), attempt=1)
    job = replace(job, version=PolicyVersion("model", 0, zero))
    artifacts.write_blob(traces_key(job.id, 1), b"of an attempt that made no version")
    traces = JobTraces(artifacts, TrajectoriesConfig())
    store = RecordingStore(replace(job, attempt=2))
    make_coordinator(ResolvedBaseModel(CONFIG), store, artifacts, OneLearner(worker, traces), traces=traces).run_next()
    traces._writer.shutdown()
    assert artifacts.list_blobs(f"traces/{job.id}") == [traces_key(job.id, 2)]
    assert job.id in artifacts.traced_jobs()
    artifacts.delete_traces(job.id)
    assert job.id not in artifacts.traced_jobs()
    artifacts.delete_traces(job.id)


def test_trajectories_that_train_nothing_have_no_traces(artifacts, worker, zero):
    equal = {"trajectories": [trajectory(1.0, 20, 21), trajectory(1.0, 22, 23)]}
    _, _, key = run(artifacts, worker, zero, groups=[equal, *GROUPS])
    _, groups = read(artifacts, key)
    assert sorted(groups) == [1, 2, 3, 4]
    assert all(math.isfinite(one.advantage) for of_group in groups.values() for one in of_group)
    _, log, key = run(artifacts, worker, zero, groups=[equal])
    assert (key, log[-1][0]) == (None, "complete")
