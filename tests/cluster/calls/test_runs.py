"""Runs keep their state whatever happens between their calls: others, lost learners, evictions, restarts, anchors."""

import threading

import pytest
from run_fakes import ADAM, CONFIG, CallFailedError, MemoryJournal, PlainGroup, body, read_output, running

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TinkerConfig
from tandem.cluster.errors import StageError
from tandem.cluster.learners.worker import LearnerWorker
from tandem.cluster.processes.deadlines import in_thread

DEAD = StageError("step", "a learner was killed.", "The next attempt starts a new process.", retryable=True)


@pytest.fixture(scope="module")
def shared(tiny_model, tmp_path_factory):
    return Artifacts(str(tmp_path_factory.mktemp("artifacts")))


@pytest.fixture(scope="module")
def initial(shared):
    return ResolvedBaseModel(CONFIG).write_initial_version(shared)


@pytest.fixture(scope="module")
def limits():
    return TinkerConfig(idle_s=0.05)


@pytest.fixture(scope="module")
def group(shared, limits):
    return PlainGroup(str(shared.checkpoints_dir.parent), limits)


@pytest.fixture
def journal(shared, initial):
    return MemoryJournal(shared, initial)


def script(journal, run, seed, num_steps=2):
    """Submit two batches of two calls each, and a save. Return the number of the save."""
    for step in range(num_steps):
        for part in range(2):
            journal.submit(run, "forward_backward", body(seed * 100 + step * 10 + part))
        journal.submit(run, "optim_step", **ADAM)
    return journal.submit(run, "save_weights")


def digest_of(journal, run, seq):
    journal.wait(run, seq)
    return journal.saved[run, seq].digest


@pytest.fixture(scope="module")
def alone(shared, initial, group, limits):
    """The digests of four runs' scripts, each alone."""
    digests = []
    for seed in range(4):
        journal = MemoryJournal(shared, initial)
        journal.add_run("alone")
        with running(journal, group, shared, limits):
            digests.append(digest_of(journal, "alone", script(journal, "alone", seed)))
    assert len(set(digests)) == 4
    return digests


def test_interleaved_runs_are_those_that_run_alone(journal, group, shared, limits, alone):
    runs = [journal.add_run(f"run-{seed}") for seed in range(4)]
    with running(journal, group, shared, limits):
        saves = [script(journal, run, seed) for seed, run in enumerate(runs)]
        assert [digest_of(journal, run, seq) for run, seq in zip(runs, saves, strict=True)] == alone


def test_a_state_that_had_to_make_room_is_made_again(journal, shared, limits, alone):
    small = limits.model_copy(update={"kept_run_bytes": 1})
    group = PlainGroup(str(shared.checkpoints_dir.parent), small)
    runs = [journal.add_run(f"run-{seed}") for seed in range(2)]
    with running(journal, group, shared, small):
        saves = [script(journal, run, seed) for seed, run in enumerate(runs)]
        assert [digest_of(journal, run, seq) for run, seq in zip(runs, saves, strict=True)] == alone[:2]
    assert group.num_starts == 1


def test_a_learner_lost_between_two_calls_changes_nothing(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.submit(run, "forward_backward", body(0))
        journal.wait(run, journal.submit(run, "forward_backward", body(1)))
        group.lose()
        journal.submit(run, "optim_step", **ADAM)
        journal.submit(run, "forward_backward", body(10))
        journal.wait(run, journal.submit(run, "forward_backward", body(11)))
        group.lose()
        journal.submit(run, "optim_step", **ADAM)
        assert digest_of(journal, run, journal.submit(run, "save_weights")) == alone[0]


def test_a_call_whose_learner_dies_runs_again_and_not_forever(journal, group, shared, limits, alone):
    run, deaths = journal.add_run("run"), [DEAD, DEAD]

    def dies(stage):
        if stage == "step" and deaths:
            raise deaths.pop()

    group.before_call = dies
    try:
        with running(journal, group, shared, limits):
            assert digest_of(journal, run, script(journal, run, 0)) == alone[0]
            deaths += [DEAD] * 3
            with pytest.raises(CallFailedError, match="try 3 of 3") as failed:
                journal.wait(run, journal.submit(run, "forward_backward", body(1)))
            assert failed.value.args[1] == "server"
            deaths.clear()
            with pytest.raises(CallFailedError, match="call 8 of its batch failed"):
                journal.wait(run, journal.submit(run, "optim_step", **ADAM))
            saved = journal.submit(run, "save_weights")
            assert digest_of(journal, run, saved) == alone[0]
    finally:
        group.before_call = lambda stage: None


def test_a_call_that_always_kills_its_learner_fails_and_other_runs_continue(
    journal, group, shared, limits, alone, monkeypatch
):
    poison, other = journal.add_run("poison"), journal.add_run("other")
    journal.submit(poison, "forward_backward", body(5))
    deadly = journal.submit(poison, "forward_backward", body(6))
    kills, accumulate = [], LearnerWorker.accumulate

    def dies(worker, run, body_key, forward_only=False):
        if body_key == f"calls/{poison}/{deadly}":
            kills.append(body_key)
            raise DEAD
        return accumulate(worker, run, body_key, forward_only)

    monkeypatch.setattr(LearnerWorker, "accumulate", dies)
    with running(journal, group, shared, limits):
        save = script(journal, other, 0)
        with pytest.raises(CallFailedError, match="try 3 of 3"):
            journal.wait(poison, deadly)
        assert digest_of(journal, other, save) == alone[0]
        with pytest.raises(CallFailedError, match=f"call {deadly} of its batch failed"):
            journal.wait(poison, journal.submit(poison, "optim_step", **ADAM))
        assert digest_of(journal, poison, script(journal, poison, 0)) == alone[0]
    assert len(kills) == 3


def test_a_lost_body_fails_its_call_and_its_batch(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    lost = journal.submit(run, "forward_backward", body(5))
    shared.delete_blob(f"calls/{run}/{lost}")
    with running(journal, group, shared, limits):
        with pytest.raises(CallFailedError, match=f"calls/{run}/{lost}") as failed:
            journal.wait(run, lost)
        assert failed.value.args[1] == "server"
        with pytest.raises(CallFailedError, match=f"call {lost} of its batch failed"):
            journal.wait(run, journal.submit(run, "optim_step", **ADAM))
        assert digest_of(journal, run, script(journal, run, 0)) == alone[0]


def test_a_body_that_is_lost_before_a_replay_fails_calls_with_what_helps(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        saved = digest_of(journal, run, script(journal, run, 0))
        first = journal.submit(run, "forward_backward", body(5))
        journal.wait(run, first)
        group.lose()
        shared.delete_blob(f"calls/{run}/{first}")
        with pytest.raises(CallFailedError, match="Load a checkpoint") as failed:
            journal.wait(run, journal.submit(run, "optim_step", **ADAM))
        assert failed.value.args[1] == "server"
        journal.wait(run, journal.submit(run, "load_weights", digest=saved, optimizer=True))
        assert digest_of(journal, run, journal.submit(run, "save_weights")) == saved


def test_a_restart_continues_between_two_calls(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.submit(run, "forward_backward", body(0))
        journal.wait(run, journal.submit(run, "forward_backward", body(1)))
    group.lose()
    with running(journal, group, shared, limits):
        journal.submit(run, "optim_step", **ADAM)
        journal.submit(run, "forward_backward", body(10))
        journal.submit(run, "forward_backward", body(11))
        journal.wait(run, journal.submit(run, "optim_step", **ADAM))
    with running(journal, group, shared, limits):  # the learners still hold it, and nobody knows that
        assert digest_of(journal, run, journal.submit(run, "save_weights")) == alone[0]


def test_a_claim_that_is_lost_leaves_no_effect(journal, group, shared, limits, alone):
    run, taken = journal.add_run("run"), []

    def take_over(run, call):
        if call.kind == "optim_step" and not taken:
            taken.append(call)
            journal.take_over(run.id)

    journal.before_answer = take_over
    with running(journal, group, shared, limits):
        assert digest_of(journal, run, script(journal, run, 0)) == alone[0]
    assert taken


def test_a_failed_call_spoils_its_batch_and_no_other(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.submit(run, "forward_backward", body(99))
        journal.submit(run, "forward_backward", b"no message")
        refused = journal.submit(run, "optim_step", **ADAM)
        save = script(journal, run, 0)
        with pytest.raises(CallFailedError, match="ForwardBackwardRequest"):
            journal.wait(run, 2)
        with pytest.raises(CallFailedError, match="call 2 of its batch failed") as failed:
            journal.wait(run, refused)
        assert failed.value.args[1] == "user"
        assert digest_of(journal, run, save) == alone[0]


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_missing_call_spoils_its_batch_also_in_a_replay(journal, group, shared, limits, alone, is_lost):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.wait(run, journal.submit(run, "forward_backward", body(99)))
        journal.submit(run, "forward_backward", body(98), seq=3)
        journal.fail(run, 2)
        journal.wait(run, 3)
        if is_lost:
            group.lose()
        with pytest.raises(CallFailedError, match="call 2 of its batch failed"):
            journal.wait(run, journal.submit(run, "optim_step", **ADAM))
        if is_lost:
            group.lose()
        assert digest_of(journal, run, script(journal, run, 0)) == alone[0]


def test_an_optim_step_that_failed_on_arrival_discards_its_batch(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.wait(run, journal.submit(run, "forward_backward", body(99)))
        journal.fail(run, 2, "optim_step")
        assert digest_of(journal, run, script(journal, run, 0)) == alone[0]


def test_forward_has_the_logprobs_of_forward_backward_and_no_effect(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        forward, metrics = read_output(journal.wait(run, journal.submit(run, "forward", body(0))))
        save = script(journal, run, 0)
        backward, same = read_output(journal.wait(run, 2))
        assert digest_of(journal, run, save) == alone[0]
    assert [own.tolist() for own in forward] == [own.tolist() for own in backward]
    assert [own.shape for own in forward] == [(20,)] * 3
    assert metrics == same and "loss:sum" in metrics


def test_a_step_without_a_gradient_lets_the_moments_decay(journal, group, shared, limits):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        digests = [digest_of(journal, run, script(journal, run, 0))]
        journal.submit(run, "optim_step", **ADAM)
        digests.append(digest_of(journal, run, journal.submit(run, "save_weights")))
        assert b'"grad_norm": 0.0' in journal.wait(run, 8).content
    assert len(set(digests)) == 2


@pytest.mark.parametrize("optimizer", [True, False])
def test_weights_are_loaded_with_and_without_the_optimizer(journal, group, shared, limits, optimizer):
    first, second = journal.add_run("first"), journal.add_run("second")

    def batch(run):
        journal.submit(run, "forward_backward", body(50))
        journal.submit(run, "optim_step", **ADAM)
        return digest_of(journal, run, journal.submit(run, "save_weights"))

    with running(journal, group, shared, limits):
        saved = digest_of(journal, first, script(journal, first, 0))
        continued = batch(first)
        script(journal, second, 1)
        journal.submit(second, "forward_backward", body(99))  # a gradient of other weights
        load = journal.submit(second, "load_weights", digest=saved, optimizer=optimizer, path="tinker://a/weights/b")
        assert b"tinker://a/weights/b" in journal.wait(second, load).content
        group.lose()
        assert (batch(second) == continued) == optimizer


def test_a_checkpoint_that_is_missing_fails_the_load_and_nothing_else(journal, group, shared, limits, alone):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        with pytest.raises(CallFailedError):
            journal.wait(run, journal.submit(run, "load_weights", digest="0" * 64, optimizer=True))
        assert digest_of(journal, run, script(journal, run, 0)) == alone[0]


def test_anchors_shorten_the_replay(journal, shared, limits):
    often = limits.model_copy(update={"anchor_steps": 2})
    group = PlainGroup(str(shared.checkpoints_dir.parent), often)
    run = journal.add_run("run")
    with running(journal, group, shared, often):
        undisturbed = digest_of(journal, run, script(journal, run, 0, num_steps=5))
    assert journal.runs[run].anchor.seq == 16  # the save; before it, anchors after steps 2 and 4
    other = journal.add_run("other")
    with running(journal, group, shared, often):
        for step in range(5):
            for part in range(2):
                journal.submit(other, "forward_backward", body(step * 10 + part))
            journal.wait(other, journal.submit(other, "optim_step", **ADAM))
    anchor = journal.runs[other].anchor
    assert anchor.seq in (6, 12) and anchor.has_optimizer
    assert set(journal.deleted) >= {f"calls/{other}/{seq}" for seq in range(1, anchor.seq) if seq % 3}
    group.lose()
    with running(journal, group, shared, often):
        assert digest_of(journal, other, journal.submit(other, "save_weights")) == undisturbed


def test_a_call_is_charged_for_its_time_also_if_it_fails(journal, group, shared, limits):
    run = journal.add_run("run")
    with running(journal, group, shared, limits):
        journal.wait(run, journal.submit(run, "forward_backward", body(0)))
        with pytest.raises(CallFailedError):
            journal.wait(run, journal.submit(run, "forward_backward", b"no message"))
    good, bad = (journal.usages[run, seq] for seq in (1, 2))
    assert good.trained_tokens > 0 == bad.trained_tokens
    for usage in (good, bad):
        assert usage.seconds >= usage.learner_seconds > 0 <= usage.cpu_seconds  # whose clock may be coarse


class Disagreement:
    """In place of `EngineAgreement`, with engines that don't apply the version."""

    def before_training(self, job):
        job.check()

    def offer(self, sealed):
        return in_thread(list, "offer")

    def after_publishing(self, job, step, digest, offered):
        job.record("engine_disagrees", {"reason": f"Version {step} differs by 0.5 nats."})


def test_a_version_that_an_engine_does_not_apply_says_so(journal, group, shared, limits):
    run = journal.add_run("run")
    with running(journal, group, shared, limits, agreement=Disagreement()):
        seq = journal.submit(run, "save_for_sampler")
        journal.wait(run, seq)
        plain = journal.submit(run, "save_weights")
        journal.wait(run, plain)
    assert journal.saved[run, seq].warning == "Version 1 differs by 0.5 nats."
    assert journal.saved[run, plain].warning is None


def test_a_save_whose_name_is_taken_is_refused_and_changes_no_later_version(shared, initial, group, limits):
    def digests(*names):
        journal = MemoryJournal(shared, initial)
        run = journal.add_run("run")
        with running(journal, group, shared, limits):
            saves = [journal.submit(run, "save_for_sampler", name=names[0])]
            journal.submit(run, "forward_backward", body(1))
            journal.submit(run, "optim_step", **ADAM)
            saves += [journal.submit(run, "save_for_sampler", name=name) for name in names[1:]]
            for seq, name in zip(saves[1:-1], names[1:-1], strict=True):
                with pytest.raises(CallFailedError, match=name) as refused:
                    journal.wait(run, seq)
                assert refused.value.args[1] == "user"
            return [digest_of(journal, run, seq) for seq in (saves[0], saves[-1])]

    assert digests("one", "one", "two") == digests("one", "two")


def test_a_call_that_waits_for_a_job_says_so(journal, group, shared, limits):
    run, turn = journal.add_run("run"), group.turns.join(10_000_000)
    turn.hold(lambda: None)
    with running(journal, group, shared, limits):
        seq = journal.submit(run, "forward_backward", body(0))
        for _ in range(200):
            if journal.waits:
                break
            threading.Event().wait(0.02)
        turn.close()
        journal.wait(run, seq)
    assert journal.waits == [(run, "The learners work for other models."), (run, None)]


def test_a_stop_leaves_what_it_has_not_begun_unanswered(journal, group, shared, limits):
    run, stopped = journal.add_run("run"), []
    with running(journal, group, shared, limits) as runner:

        def stop(run, call):
            runner.stop()
            stopped.append(call.seq)

        journal.before_answer = stop
        for seed in range(5):
            journal.submit(run, "forward_backward", body(seed))
        journal.wait(run, 1)
    assert stopped == [1]
    assert list(journal.answers) == [(run, 1)] and not journal.claimed
