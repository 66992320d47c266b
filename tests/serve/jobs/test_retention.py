"""Retention deletes what is surplus and nothing that is needed, in two steps, each of which may be interrupted."""

from datetime import timedelta

import pytest
import torch

from tandem.cli.commands.retention import deletions
from tandem.cli.commands.retention import kept as kept_names
from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import RetentionConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.checkpoints import LearnerState, read_checkpoint, write_checkpoint
from tandem.rl.errors import ConfigError
from tandem.serve.errors import ConflictError, GoneError, NotFoundError
from tandem.serve.jobs.sweeping import apply_retention
from tandem.serve.store.policies.references import Checkpoint, KlReference, Lag, Step

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
GRACE = timedelta(hours=1)


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path / "artifacts"))


@pytest.fixture
def write(artifacts):
    def write(number):
        """Return the digest of a real checkpoint with optimizer state."""
        state = LearnerState({"w": torch.full((3,), float(number))}, {"w.exp_avg": torch.full((3,), float(number))})
        return write_checkpoint(artifacts.checkpoints_dir, state, {}, {}).digest

    return write


@pytest.fixture
def train(store, add_job, claim, write):
    """Make versions of a model. Return their digests."""

    def train(model, *numbers):
        digests = [write(number) for number in numbers]
        for digest in digests:
            add_job(model)
            claimed = claim()
            store.claims.complete(claimed, PolicyVersion(model.id, claimed.next_step, digest), {})
        return digests

    return train


@pytest.fixture
def apply(store, artifacts, clock):
    def apply(keep_versions=None, keep_optimizer=None):
        settings = RetentionConfig(keep_versions=keep_versions, keep_optimizer=keep_optimizer)
        apply_retention(store, artifacts, settings, clock.now - GRACE)

    return apply


def steps(store, model, with_retired=False):
    return [row.step for row in store.versions.page(model.id, "team", 100, with_retired=with_retired)]


def kept(artifacts):
    return {path.name for path in artifacts.checkpoints_dir.iterdir()}


def test_the_newest_versions_stay_and_older_ones_answer_that_retention_deleted_them(
    store, artifacts, add_model, train, apply, clock
):
    model, other = add_model(), add_model("other")
    digests, others = train(model, 1, 2, 3, 4), train(other, 5)
    apply()
    assert steps(store, model) == [1, 2, 3, 4]
    apply(keep_versions=2)
    assert steps(store, model) == [3, 4] and steps(store, other) == [1]
    assert steps(store, model, with_retired=True) == [1, 2, 3, 4]
    assert store.versions.resolve("team", "project", "agent", None).digest == digests[3]
    assert store.versions.resolve("team", "project", "agent", 0).step == 0
    with pytest.raises(GoneError, match=r"step2 any more: it was deleted on 2026-01-01 by retention") as gone:
        store.versions.resolve("team", "project", "agent", 2)
    assert gone.value.code == "version_retired"
    with pytest.raises(NotFoundError, match="hasn't been trained yet") as unknown:
        store.versions.resolve("team", "project", "agent", 5)
    assert not isinstance(unknown.value, GoneError)
    with pytest.raises(ConfigError, match="by retention"):
        store.jobs.add("a" * 36, model.id, "payloads/a", {}, "0" * 64, reference=KlReference("kl", Step(1)))

    assert kept(artifacts) == {*digests, *others}  # requests that have found a version may still need it
    clock.advance(2 * GRACE.total_seconds())
    apply(keep_versions=2)
    assert kept(artifacts) == {*digests[2:], *others}
    apply(keep_versions=2)
    with pytest.raises(GoneError):
        store.versions.resolve("team", "project", "agent", 2)
    assert store.garbage.unused_digests(clock.now) == []


def test_what_an_open_job_needs_stays(store, add_model, add_job, train, apply, claim, clock):
    model, other, third = add_model(), add_model("other"), add_model("third")
    digests, [borrowed, *_], [named, *_] = train(model, 1, 2, 3), train(other, 4, 5, 6), train(third, 7, 8, 9)
    references = Step(1, ("team", "project", "other")), Checkpoint(named), Lag(2)
    for number, target in enumerate(references):
        store.jobs.add(
            f"job-{number}", model.id, f"payloads/{number}", {}, "0" * 64, reference=KlReference("kl", target)
        )
    apply(keep_versions=1)
    assert steps(store, model) == [1, 2, 3]  # the lag will need one of them
    assert steps(store, other) == [1, 3] and steps(store, third) == [1, 3]

    running = claim()
    assert (running.version.digest, running.reference_digest) == (digests[2], borrowed)
    store.claims.complete(running, PolicyVersion(model.id, 4, digests[2]), {})
    apply(keep_versions=1)
    assert steps(store, other) == [3] and steps(store, third) == [1, 3]
    while running := claim():
        store.claims.complete(running, PolicyVersion(model.id, running.next_step, "f" * 64), {})
    apply(keep_versions=1)
    assert steps(store, model) == [6] and steps(store, third) == [3]


def test_the_version_that_a_running_job_started_from_stays(
    store, add_model, add_job, train, apply, claim, artifacts, clock
):
    model = add_model()
    digests = train(model, 1, 2)
    add_job(model)
    running = claim()
    store.versions.delete(model.id, "team", [2])
    train(add_model("other"), 3)
    apply(keep_versions=1, keep_optimizer=1)
    clock.advance(2 * GRACE.total_seconds())
    apply(keep_versions=1, keep_optimizer=1)
    assert running.version.digest in kept(artifacts)
    assert read_checkpoint(artifacts.checkpoints_dir / digests[1]).optimizer


def test_old_optimizer_states_go_and_their_versions_answer(
    store, artifacts, add_model, add_job, train, apply, claim, clock
):
    model = add_model()
    digests = train(model, 1, 2, 3)
    apply(keep_optimizer=1)
    assert all(read_checkpoint(artifacts.checkpoints_dir / digest).optimizer for digest in digests)
    clock.advance(2 * GRACE.total_seconds())
    apply(keep_optimizer=1)
    states = [read_checkpoint(artifacts.checkpoints_dir / digest) for digest in digests]
    assert [bool(state.optimizer) for state in states] == [False, False, True]
    assert all(state.adapter for state in states)
    assert store.versions.resolve("team", "project", "agent", 1).digest == digests[0]
    assert store.retention.removable_optimizers(clock.now) == []

    store.versions.delete(model.id, "team", [3])
    add_job(model)
    claimed = claim()
    assert claimed.version.digest == digests[1] and claimed.fresh_optimizer
    store.claims.complete(claimed, PolicyVersion(model.id, 4, digests[2]), {})
    add_job(model)
    assert not claim().fresh_optimizer


def test_files_that_another_version_needs_stay(store, artifacts, add_model, train, apply, clock):
    """Two models have the same weights, as after a job that trained nothing."""
    [shared, _] = train(add_model(), 1, 2)
    assert train(add_model("other"), 1) == [shared]
    apply(keep_versions=1, keep_optimizer=1)
    clock.advance(2 * GRACE.total_seconds())
    apply(keep_versions=1, keep_optimizer=1)
    assert read_checkpoint(artifacts.checkpoints_dir / shared).optimizer


def test_an_interrupted_deletion_is_completed(store, artifacts, add_model, train, apply, clock, monkeypatch):
    model = add_model()
    digests = train(model, 1, 2, 3, 4)
    apply(keep_versions=3, keep_optimizer=1)
    clock.advance(2 * GRACE.total_seconds())
    with monkeypatch.context() as patch:
        for name in ("delete_checkpoint", "drop_optimizer"):
            patch.setattr(Artifacts, name, lambda *_: (_ for _ in ()).throw(OSError("killed here")))
        apply(keep_versions=3, keep_optimizer=1)
    artifacts.write_blob(f"checkpoints/{digests[1]}/optimizer.dropped", b"")  # as far as the deletion came
    assert kept(artifacts) == set(digests)
    apply()  # also without limits
    assert kept(artifacts) == set(digests[1:])
    states = [read_checkpoint(artifacts.checkpoints_dir / digest) for digest in digests[1:]]
    assert [bool(state.optimizer) for state in states] == [False, False, True]


def test_a_checkpoint_that_is_made_again_has_its_optimizer_state_again(store, artifacts, write):
    digest = write(1)
    artifacts.drop_optimizer(digest)
    artifacts.drop_optimizer("e" * 64)
    assert read_checkpoint(artifacts.checkpoints_dir / digest).optimizer == {}
    assert write(1) == digest
    assert read_checkpoint(artifacts.checkpoints_dir / digest).optimizer


def test_the_list_shows_what_would_go_with_sizes(store, artifacts, add_model, train, apply):
    train(add_model(), 1, 1, 2, 3)
    settings = RetentionConfig(keep_versions=2, keep_optimizer=1)
    [first, again, optimizer] = deletions(store, artifacts, settings)
    [digest, *_] = [row.digest for row in store.versions.page(add_model().id, "team", 1)]
    assert (first.model, first.step, first.deleted) == ("team/project/agent", 1, "version")
    assert first.bytes == sum(file.stat().st_size for file in (artifacts.checkpoints_dir / digest).iterdir())
    assert (again.step, again.bytes) == (2, 0)  # the same files
    assert (optimizer.step, optimizer.deleted) == (3, "optimizer state") and 0 < optimizer.bytes < first.bytes
    assert deletions(store, artifacts, RetentionConfig()) == []
    apply(keep_versions=2, keep_optimizer=1)
    assert deletions(store, artifacts, settings) == []


def test_a_deleted_model_leaves_no_rows(store, add_model, train, apply, clock):
    model = add_model()
    train(model, 1, 2)
    apply(keep_versions=1)
    clock.advance(2 * GRACE.total_seconds())
    apply(keep_versions=1)
    store.models.delete(model.id, "team")
    apply(keep_versions=1)
    with store.database.read() as session:
        assert session.connection().exec_driver_sql("SELECT step FROM versions").all() == []


def test_a_kept_version_stays_with_its_optimizer_until_it_is_released(store, artifacts, add_model, train, apply, clock):
    model = add_model()
    digests = train(model, 1, 2, 3, 4)
    since = store.versions.keep(model.id, "team", 2, True).kept_at
    clock.advance(1)
    assert store.versions.keep(model.id, "team", 2, True).kept_at == since, "a repeat changes nothing"
    settings = RetentionConfig(keep_versions=1, keep_optimizer=1)
    assert kept_names(store, settings) == ["team/project/agent:step2"]
    assert {one.step for one in deletions(store, artifacts, settings)} == {1, 3}
    for _ in range(2):
        apply(keep_versions=1, keep_optimizer=1)
        clock.advance(2 * GRACE.total_seconds())
    assert steps(store, model) == [2, 4]
    assert kept(artifacts) == {digests[1], digests[3]}
    assert read_checkpoint(artifacts.checkpoints_dir / digests[1]).optimizer

    for delete in (
        lambda: store.versions.delete(model.id, "team", [2, 4]),
        lambda: store.models.delete(model.id, "team"),
    ):
        with pytest.raises(ConflictError, match=r"Version 2 of team/project/agent is kept") as refused:
            delete()
        assert refused.value.code == "version_kept"
        assert steps(store, model) == [2, 4]
    with pytest.raises(GoneError):
        store.versions.keep(model.id, "team", 1, True)
    with pytest.raises(NotFoundError):
        store.versions.keep(model.id, "other", 2, False)

    store.versions.keep(model.id, "team", 2, False)
    assert kept_names(store, settings) == []
    for _ in range(2):
        apply(keep_versions=1, keep_optimizer=1)
        clock.advance(2 * GRACE.total_seconds())
    assert steps(store, model) == [4] and kept(artifacts) == {digests[3]}


def test_only_the_optimizer_state_of_kept_versions_outlives_its_limit(store, artifacts, add_model, train, apply, clock):
    model = add_model()
    digests = train(model, 1, 2, 3)
    store.versions.keep(model.id, "team", 1, True)
    for _ in range(2):
        apply(keep_optimizer=1)
        clock.advance(2 * GRACE.total_seconds())
    states = [read_checkpoint(artifacts.checkpoints_dir / digest).optimizer for digest in digests]
    assert [bool(state) for state in states] == [True, False, True]
