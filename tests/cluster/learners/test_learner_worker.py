"""A learner scores under any version while it trains another. The update doesn't depend on the scorer."""

import pickle
import shutil
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from coordinator_fakes import RecordingStore, make_coordinator, make_job, trajectory
from policy_reference import PolicyReference

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, LearnersConfig, LogprobsConfig, LoraLimits
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.checkpoints import read_checkpoint
from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.errors import LoraLimitError, StepError
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.packing import pack, unpack
from tandem.rl.settings import LoraSettings
from tandem.rl.tokens.tokenizing import TokenizedSequence
from tandem.rl.version_probe import BASE, PREVIOUS, VersionProbe

SAME = 1e-4  # float32 logprobs of the same policy, computed packed and unpacked
CONFIG = BaseModelConfig(
    name="tandem/tiny", path="builtin:tiny", max_model_len=256, learners=LearnersConfig(device="cpu")
)


def rows(seed: int):
    """Return two packed rows: three completions with a shared prompt, and a single sequence."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(8, 400, (12,), generator=generator)
    sequences = []
    for index, length in enumerate((7, 11, 5, 9)):
        ids = torch.cat([prompt, torch.randint(8, 400, (length,), generator=generator)])
        mask = torch.arange(len(ids)) >= 12
        sequences.append(
            TokenizedSequence(
                *(index // 3, index, 0, ids, mask, torch.where(mask, -3.0, torch.nan), (12,)),
                advantage=(-1.0) ** index,
                weight=1.0,
                prompt_length=11 if index < 3 else 0,
            )
        )
    return pack(sequences, 40)


def save(worker, metadata, job=""):
    """Return the digest of the version that the job has made."""
    assert worker.finish(job) is None
    digest = worker.write(metadata, job)
    worker.keep(digest, job)
    return digest


class OneLearner:
    """A learner group with one learner, in this process, and its only training."""

    step_size = StepSize(rows=2)
    is_ready, waiting_for = True, None

    def __init__(self, worker):
        self.worker = worker

    @contextmanager
    def training(self, job, num_tokens, warn, clock):
        self.clock = clock
        yield self

    def start(self, on_wait):
        pass

    def load(self, digest, on_wait, on_wait_turn, fresh_optimizer):
        self.worker.load(digest, fresh_optimizer=fresh_optimizer)

    def scorers(self, digest, chunk_size):
        return [lambda rows, timeout_s: self.worker.score(digest, rows, chunk_size)]

    def step(self, sequences, loss, rate, chunk_size, on_wait, on_wait_turn):
        return self.worker.step(sequences, loss, rate, chunk_size)

    def finish(self, on_wait):
        pass

    def save(self, metadata, on_wait):
        return save(self.worker, metadata)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def worker(tiny_model, artifacts):
    worker = LearnerWorker(0, 1, CONFIG, str(artifacts.checkpoints_dir.parent))
    worker.start(None, 60)
    return worker


@pytest.fixture(scope="module")
def versions(worker, artifacts) -> list[str]:
    """The zero adapter and two trained versions."""
    digests = [ResolvedBaseModel(CONFIG).write_initial_version(artifacts)]
    for step in (1, 2):
        worker.load(digests[-1])
        for _ in range(3):
            worker.step(rows(seed=step), LossConfig(), 0.01, 64)
        digests.append(save(worker, {"step": step}))
    return digests


def test_an_earlier_state_is_loaded_from_memory(worker, versions, artifacts):
    worker.load(versions[1])
    for step in range(2):
        worker.step(rows(seed=7 + step), LossConfig(), 0.01, 64)
    digest = save(worker, {"step": 9})
    expected = read_checkpoint(artifacts.checkpoints_dir / digest)
    worker.load(versions[2])
    worker.step(rows(seed=9), LossConfig(), 0.01, 64)
    shutil.rmtree(artifacts.checkpoints_dir / digest)
    worker.load(digest)
    state = worker._learner.state()
    for ours, theirs in ((state.adapter, expected.adapter), (state.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys() and theirs
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert save(worker, {"step": 9}) == digest


def test_a_state_that_has_changed_is_not_kept_under_its_old_digest(worker, versions):
    worker.load(versions[1])
    worker.step(rows(seed=3), LossConfig(), 0.01, 64)
    worker.load(versions[2])
    assert worker._kept.take(versions[1]) is None
    worker.load(versions[1])
    assert save(worker, {"step": 1}) == versions[1]


def test_jobs_that_take_turns_make_the_versions_that_they_make_alone(worker, versions):
    """Bitwise: adapters, optimizer states and the stored probes."""
    jobs = {"a": (versions[1], 20), "b": (versions[2], 30), "c": (versions[1], 40)}

    def step(job, index):
        worker.step(rows(seed=jobs[job][1] + index), LossConfig(), 0.01, 64, job)

    def alone(job):
        worker.load(jobs[job][0], job)
        for index in range(3):
            step(job, index)
        return save(worker, {"step": 5}, job)

    def probe(digest):
        return VersionProbe.of_checkpoint(worker._artifacts.pull_checkpoint(digest))

    expected = {job: alone(job) for job in jobs}
    assert len(set(expected.values())) == 3
    probes = {job: probe(digest) for job, digest in expected.items()}
    for digest in expected.values():
        shutil.rmtree(worker._artifacts.pull_checkpoint(digest))
    worker.load(jobs["a"][0], "a")
    step("a", 0)
    worker.load(jobs["b"][0], "b")
    worker.load(jobs["c"][0], "c")
    for job, index in (("b", 0), ("c", 0), ("a", 1), ("c", 1), ("b", 1), ("b", 2), ("a", 2)):
        step(job, index)
    assert worker.finish("a") is None
    step("c", 2)
    found = {"a": worker.write({"step": 5}, "a")}
    worker.keep(found["a"], "a")
    found |= {job: save(worker, {"step": 5}, job) for job in ("b", "c")}
    assert found == expected
    assert {job: probe(digest) for job, digest in found.items()} == probes


OWN = {
    "narrow": LoraSettings(r=2, alpha=6, target_modules=("v_proj", "q_proj"), seed=3),
    "wide": LoraSettings(r=16, alpha=8, target_modules=("down_proj", "gate_proj", "o_proj")),
    "base": CONFIG.lora,
}


def test_models_of_different_settings_that_take_turns_make_the_versions_that_they_make_alone(artifacts, tmp_path):
    """Bitwise, where each alone has a learner that was started with its settings. They also score under each other."""
    root = str(artifacts.checkpoints_dir.parent)
    shared = CONFIG.model_copy(update={"lora_limits": LoraLimits(max_r=16)})
    zeros = {name: ResolvedBaseModel(shared).write_initial_version(artifacts, lora) for name, lora in OWN.items()}

    def train(worker, name, index):
        worker.step(rows(seed=50 + index), LossConfig(), 0.01, 64, name)

    expected, scores = {}, {}
    for name, lora in OWN.items():
        alone = LearnerWorker(0, 1, CONFIG.model_copy(update={"lora": lora}), root)
        alone.start(None, 60)
        assert ResolvedBaseModel(alone._base).write_initial_version(artifacts) == zeros[name]
        alone.load(zeros[name], name)
        for index in range(3):
            train(alone, name, index)
        expected[name] = save(alone, {"step": 1}, name)
        scores[name] = alone.score(expected[name], rows(seed=1), 64)

    together = LearnerWorker(0, 1, shared, root)
    together.start(None, 60)
    for name in OWN:
        together.load(zeros[name], name)
    for index in range(3):
        for name in OWN:
            train(together, name, index)
            for other, found in scores.items():  # under a version of other settings, in the middle of a training
                for ours, theirs in zip(together.score(expected[other], rows(seed=1), 64), found, strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    for name in OWN:
        assert together.finish(name) is None
    made = {name: together.write({"step": 1}, name) for name in OWN}  # while the learner has the settings of the last
    assert made == expected
    for name, digest in made.items():
        together.keep(digest, name)
        probe = together.probe_version(digest)
        stored = VersionProbe.of_checkpoint(artifacts.checkpoints_dir / digest)
        assert probe.logprobs == pytest.approx(stored.logprobs, abs=1e-6) and probe.is_finite
        together.load(digest, name)  # from memory, with its settings
        train(together, name, 3)


def test_settings_beyond_the_limits_of_the_base_model_are_refused_and_harm_nothing(worker, versions, artifacts):
    wider = CONFIG.model_copy(update={"lora_limits": LoraLimits(max_r=64)})
    digest = ResolvedBaseModel(wider).write_initial_version(artifacts, CONFIG.lora.model_copy(update={"r": 64}))
    worker.load(versions[1], "job")
    assert isinstance(worker.probe_version(digest), LoraLimitError)
    refusal = worker.load(digest, "other")
    assert isinstance(refusal, LoraLimitError) and "rank 64 is above 8" in str(refusal)
    worker.load(versions[1], "job")
    worker.step(rows(seed=3), LossConfig(), 0.01, 64, "job")
    worker.drop("job")


def test_a_dropped_job_leaves_the_others_as_they_are(worker, versions):
    worker.load(versions[1], "a")
    worker.step(rows(seed=3), LossConfig(), 0.01, 64, "a")
    worker.load(versions[1], "dropped")
    worker.step(rows(seed=4), LossConfig(), 0.01, 64, "dropped")
    worker.drop("dropped")
    worker.drop("dropped")
    digest = save(worker, {"step": 3}, "a")
    worker.load(versions[1], "b")
    worker.step(rows(seed=3), LossConfig(), 0.01, 64, "b")
    assert save(worker, {"step": 3}, "b") == digest


@pytest.mark.parametrize("learning_rate", [1e10, 1e20])
def test_a_step_that_diverges_is_reported_and_the_next_version_is_as_before(worker, versions, artifacts, learning_rate):
    def train() -> str:
        worker.load(versions[1])
        worker.step(rows(seed=3), LossConfig(), 0.01, 64)
        return save(worker, {"step": 3})

    digest, checkpoints = train(), set(artifacts.checkpoints_dir.iterdir())
    worker.load(versions[1])
    worker.step(rows(seed=3), LossConfig(), learning_rate, 64)
    faults = [worker.finish(), worker.step(rows(seed=4), LossConfig(), 0.01, 64)]
    for fault in faults:
        assert isinstance(fault, StepError) and "learning_rate" in str(pickle.loads(pickle.dumps(fault)))
    worker.load(versions[1])
    assert worker.finish() is None
    assert train() == digest and set(artifacts.checkpoints_dir.iterdir()) == checkpoints


@pytest.fixture(scope="module")
def reference(tiny_model, versions, artifacts):
    return PolicyReference(tiny_model, {digest: Path(artifacts.checkpoints_dir / digest) for digest in versions})


def assert_scores(found, batch, reference, digest):
    for logprobs, row in zip(found, batch, strict=True):
        assert logprobs.dtype == torch.float32 and logprobs.device.type == "cpu"
        begins = [int(i) for i in range(row.num_tokens) if i == 0 or row.segment_ids[i] != row.segment_ids[i - 1]]
        assert logprobs.isnan().nonzero().squeeze(1).tolist() == begins
        for own in unpack(row):
            expected = reference.logprobs(digest, row.token_ids[own].tolist())
            known = ~logprobs[own[1:]].isnan()
            torch.testing.assert_close(logprobs[own[1:]][known], expected[known], atol=SAME, rtol=0)


def test_a_version_is_stored_with_its_logprobs_of_the_probe(versions, artifacts, reference):
    """And with those of the base model and of the version before, for an engine that uses them by mistake."""
    assert VersionProbe.of_checkpoint(artifacts.checkpoints_dir / versions[0]) is None
    for before, digest in pairwise(versions):
        probe = VersionProbe.of_checkpoint(artifacts.checkpoints_dir / digest)
        of_version = {digest: probe.logprobs, versions[0]: probe.others[BASE], before: probe.others[PREVIOUS]}
        for version, logprobs in of_version.items():
            expected = reference.logprobs(version, probe.token_ids)
            torch.testing.assert_close(torch.tensor(logprobs), expected, atol=SAME, rtol=0)
        assert not probe.judge(probe.others[PREVIOUS], "float32").is_right


def test_the_base_models_probe_is_that_of_version_0(worker, versions, reference):
    probe = worker.base_probe()
    expected = reference.logprobs(versions[0], probe.token_ids)
    torch.testing.assert_close(torch.tensor(probe.logprobs), expected, atol=SAME, rtol=0)


def test_training_without_the_optimizer_state_is_the_same_on_every_rank(worker, versions, artifacts):
    """Whether a rank still has the state in memory, on disk or not at all, and nothing keeps it by its old digest."""

    def train(fresh):
        worker.load(versions[1], "a", fresh)
        worker.step(rows(seed=3), LossConfig(), 0.01, 64, "a")
        return save(worker, {"step": 3}, "a")

    usual, fresh = train(False), train(True)
    assert usual != fresh
    worker.load(versions[1])
    worker.load(versions[2])  # the first one is kept in memory
    assert train(True) == fresh and train(False) == usual
    worker.load(versions[1], "a", True)
    worker.load(versions[2], "a")
    assert train(False) == usual
    saved = (artifacts.checkpoints_dir / versions[1] / "optimizer.safetensors").read_bytes()
    artifacts.drop_optimizer(versions[1])
    try:
        assert train(True) == fresh
    finally:
        (artifacts.checkpoints_dir / versions[1] / "optimizer.safetensors").write_bytes(saved)
        (artifacts.checkpoints_dir / versions[1] / "optimizer.dropped").unlink()


def test_any_version_is_scored_while_another_is_in_training(worker, versions, reference):
    worker.load(versions[1])
    worker.step(rows(seed=3), LossConfig(), 0.01, 64)  # this state is in no checkpoint
    before, batch = worker._learner.state(), rows(seed=4)
    for digest in (*versions, versions[0]):
        assert_scores(worker.score(digest, batch, 5), batch, reference, digest)
    after = worker._learner.state()
    for mine, theirs in ((before.adapter, after.adapter), (before.optimizer, after.optimizer)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_scoring_does_not_change_the_next_step(worker, versions):
    adapters = []
    for scored in (False, True):
        worker.load(versions[1])
        if scored:
            worker.score(versions[0], rows(seed=4), 64)
        worker.step(rows(seed=3), LossConfig(), 0.01, 64)
        adapters.append(worker._learner.state().adapter)
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])


def test_the_loaded_state_is_scored_without_reading_it_again_until_a_step_changes_it(worker, versions, monkeypatch):
    read = []
    monkeypatch.setattr(worker._stored, "adapter", lambda digest: read.append(digest) or worker._learner.state())
    worker.load(versions[1])
    worker.score(versions[1], rows(seed=4), 64)
    assert read == []
    worker.step(rows(seed=3), LossConfig(), 0.01, 64)
    worker.score(versions[1], rows(seed=4), 64)
    assert read == [versions[1]]


def test_the_state_survives_a_scoring_that_fails(worker, versions):
    worker.load(versions[2])
    before = worker._learner.state().adapter
    [row, _] = rows(seed=4)
    with pytest.raises(IndexError):
        worker.score(versions[0], [replace(row, token_ids=row.token_ids + 10**6)], 64)
    with pytest.raises(OSError, match="isn't in the artifact store"):
        worker.score("f" * 64, [row], 64)
    after = worker._learner.state().adapter
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_update_does_not_depend_on_the_scorer(worker, versions, reference, artifacts):
    """The learner alone, an engine alone, and both together score old and reference logprobs.

    The resulting adapters agree to 1e-6, while the update changes the adapter by more than 1e-3.
    """

    def engine(sequences, digest, timeout_s):
        return [[float("nan"), *reference.logprobs(digest, tokens).tolist()] for tokens in sequences]

    groups = [{"trajectories": [trajectory(1.0, 100 + i, 11, 50), trajectory(0.0, 12, 13 + i, 14)]} for i in range(4)]
    config = TrainingConfig(
        precalculate_logprobs=True, kl_penalty_coef=0.5, learning_rate=0.01, packed_sequence_length=48,
        kl_penalty_source="current_learner", truncated_importance_sampling=2.0,
    )  # fmt: skip
    job = make_job(artifacts, groups, config=config, reference_digest=versions[0])
    job = replace(job, version=PolicyVersion("model", 2, versions[2]))
    adapters, metrics = {}, {}
    for mode in ("learner", "engine", "shared"):
        settings = LogprobsConfig(mode=mode, chunk_tokens=48, sample_fraction=0 if mode == "engine" else 0.05)
        base = ResolvedBaseModel(CONFIG.model_copy(update={"logprobs": settings}))
        store = RecordingStore(job)
        make_coordinator(base, store, artifacts, OneLearner(worker), [engine]).run_next()
        assert store.log[-1][0] == "complete", store.log
        metrics[mode] = store.log[1][1]
        adapters[mode] = read_checkpoint(artifacts.checkpoints_dir / store.log[-1][2]).adapter
    start = read_checkpoint(artifacts.checkpoints_dir / versions[2]).adapter
    assert max(float((start[name] - adapters["learner"][name]).abs().max()) for name in start) > 1e-3
    for mode in ("engine", "shared"):
        for name, tensor in adapters["learner"].items():
            torch.testing.assert_close(adapters[mode][name], tensor, atol=1e-6, rtol=0)
    assert metrics["learner"]["loss/kl_policy_ref"] == pytest.approx(metrics["engine"]["loss/kl_policy_ref"], abs=1e-5)
    assert [metrics[mode]["logprobs/engine_share"] for mode in ("learner", "engine")] == [0, 1]
    assert metrics["shared"]["logprobs/engine_learner_abs_diff_max"] < SAME
