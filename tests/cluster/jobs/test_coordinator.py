"""The stages and ends of a job, with a store and learners that record the order of their calls."""

import threading
from dataclasses import replace

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job, trajectory
from waiting import wait_until

from tandem.cluster.config import LearnersConfig
from tandem.cluster.errors import JobCancelledError, LearnersLostError, LeaseLostError, StageError
from tandem.rl.config import TrainingConfig


@pytest.fixture
def run(artifacts, base):
    def run(store, learners=None, **settings):
        learners = learners or RecordingLearners()
        coordinator = make_coordinator(base, store, artifacts, learners, **settings)
        assert coordinator.run_next()
        assert coordinator.running_jobs == []
        return learners

    return run


def test_a_job_starts_steps_saves_and_ends_in_that_order(run, artifacts):
    store = RecordingStore(make_job(artifacts))
    learners = run(store)
    assert store.order == ["training_started", "gradient_step", "complete"]
    assert store.log[0][1]["num_sequences"] == 1
    assert store.log[0][1]["num_gradient_steps"] == 1
    assert store.log[-1] == ("complete", 4, "digest-after")
    assert learners.log == [("load", "digest-before"), ("step", 1, "cispo", 5e-6), ("finish",), ("save", 4)]


def test_the_jobs_own_options_reach_the_learners(run, artifacts):
    config = TrainingConfig(loss_fn="ppo", learning_rate=0.25, packed_sequence_length=16)
    learners = run(RecordingStore(make_job(artifacts, config=config)))
    assert [entry for entry in learners.log if entry[0] == "step"] == [("step", 1, "ppo", 0.25)] * 2


def test_equal_rewards_make_a_version_without_learners(run, artifacts):
    groups = [{"trajectories": [trajectory(0.5, 10), trajectory(0.5, 11)]}]
    store = RecordingStore(make_job(artifacts, groups))
    assert run(store).log == []
    assert store.log[0][1]["num_sequences"] == 0
    assert store.log[-1] == ("complete", 4, "digest-before")


def test_an_inexact_trajectory_fails_the_job_and_names_the_place(run, artifacts):
    groups = [{"trajectories": [trajectory(1.0, 10), trajectory(0.0, 999_999)]}]
    store = RecordingStore(make_job(artifacts, groups))
    run(store)
    assert store.order == ["fail"]
    assert "'prepare'" in store.log[0][1]
    assert "group 0, trajectory 1" in store.log[0][1]


def test_a_dead_learner_requeues_until_the_attempts_are_used_up(run, artifacts):
    death = StageError("step", "a learner died.", "New learners are started.", retryable=True)
    store = RecordingStore(make_job(artifacts))
    run(store, RecordingLearners([death]), max_attempts=2)
    assert store.order == ["training_started", "requeue"]
    store = RecordingStore(make_job(artifacts, attempt=2))
    run(store, RecordingLearners([death]), max_attempts=2)
    assert store.order == ["training_started", "fail"]
    assert "a learner died" in store.log[-1][1] and "attempt 2 of 2" in store.log[-1][1]


def test_a_job_that_loses_the_learners_to_another_one_is_handed_back(run, artifacts):
    store = RecordingStore(make_job(artifacts, attempt=2))
    run(store, RecordingLearners([LearnersLostError("another job's step")]), max_attempts=2)
    assert store.order == ["training_started", "hand_back"]


def test_the_next_models_job_trains_while_a_version_is_written(artifacts, base):
    """And the coordinator claims no more jobs at once than it may."""

    class Learners(RecordingLearners):
        def step(self, *args):
            steps.append(coordinator.running_jobs)
            return super().step(*args)

        def save(self, *args):
            assert wait_until(lambda: len(steps) == 3) is None, "the other jobs' steps wait for this checkpoint"
            coordinator.stop()
            return super().save(*args)

    steps = []
    jobs = [make_job(artifacts) for _ in range(4)]
    store = RecordingStore(*jobs)
    base.config = base.config.model_copy(update={"learners": LearnersConfig(jobs_at_once=3)})
    coordinator = make_coordinator(base, store, artifacts, Learners(), poll_s=0.01)
    coordinator.run()
    assert store.jobs == jobs[3:] and store.order.count("complete") == 3
    assert all(set(running) <= {job.id for job in jobs[:3]} for running in steps)


def test_a_job_that_repeatedly_kills_its_coordinator_fails(run, artifacts):
    store = RecordingStore(make_job(artifacts, attempt=4))
    assert run(store, max_attempts=3).log == []
    assert store.order == ["fail"]
    assert "3 attempts" in store.log[0][1]
    store = RecordingStore(make_job(artifacts, attempt=4, num_handed_back=1))
    run(store, max_attempts=3)
    assert store.order[-1] == "complete"


def test_a_second_attempt_repeats_no_recorded_step(run, artifacts):
    config = TrainingConfig(packed_sequence_length=16)
    store = RecordingStore(make_job(artifacts, config=config, attempt=2, num_recorded_gradient_steps=1))
    learners = run(store)
    assert len([entry for entry in learners.log if entry[0] == "step"]) == 2
    assert store.order == ["training_started", "gradient_step", "complete"]


def test_a_cancelled_job_ends_between_steps(run, artifacts):
    def cancel(on_wait):
        store.renewals += [JobCancelledError("please"), None]
        wait_until(lambda: not store.renewals)  # the second renewal shows that the cancellation was noticed

    store = RecordingStore(make_job(artifacts))
    run(store, RecordingLearners(in_step=cancel), lease_s=0.15)
    assert store.order == ["training_started", "gradient_step", "cancel"]


def test_a_lost_lease_writes_nothing_more(run, artifacts):
    def lose(on_wait):
        store.renewals += [None, LeaseLostError("taken over")]
        wait_until(on_wait)  # `on_wait` raises

    store = RecordingStore(make_job(artifacts))
    run(store, RecordingLearners(in_step=lose), lease_s=0.15)
    assert store.order == ["training_started"]


def test_a_bug_fails_the_job_with_its_name(run, artifacts):
    store = RecordingStore(make_job(artifacts))
    run(store, RecordingLearners([ZeroDivisionError("oops")]))
    assert store.order == ["training_started", "fail"]
    assert "ZeroDivisionError: oops" in store.log[-1][1]


def test_the_coordinator_survives_a_store_that_fails_for_a_moment(artifacts, base):
    class FlakyStore(RecordingStore):
        faults = 2

        def claim_next(self, *args):
            if self.faults:
                self.faults -= 1
                raise OSError("the database is away")
            errors.append(coordinator.last_error)
            coordinator.stop()
            return None

    errors = []
    coordinator = make_coordinator(base, FlakyStore(), artifacts, RecordingLearners(), poll_s=0.01)
    coordinator.run()
    assert errors == ["OSError: the database is away"] and coordinator.last_error is None


def test_a_job_is_claimed_when_the_store_changes(artifacts, base):
    """The next poll is due after the test's deadline."""

    class Store(RecordingStore):
        def change_mark(self):
            looks.append(len(self.jobs))
            return len(self.jobs)

        def complete(self, *args):
            super().complete(*args)
            coordinator.stop()

    looks, store = [], Store()
    coordinator = make_coordinator(base, store, artifacts, RecordingLearners(), poll_s=3600)
    thread = threading.Thread(target=coordinator.run, daemon=True)
    thread.start()
    wait_until(lambda: len(looks) > 2)
    store.jobs.append(make_job(artifacts))
    wait_until(lambda: "complete" in store.order)
    thread.join(300)
    assert not thread.is_alive()


def test_the_order_of_sequences_follows_from_the_job_alone(artifacts, base):
    def order(job):
        seen = []

        class Learners(RecordingLearners):
            def step(self, sequences, *args):
                seen.extend(tuple(s.token_ids.tolist()) for s in sequences)
                return super().step(sequences, *args)

        make_coordinator(base, RecordingStore(job), artifacts, Learners()).run_next()
        return seen

    groups = [{"trajectories": [trajectory(1.0, 10 + i), trajectory(0.0, 60 + i)]} for i in range(8)]
    config = TrainingConfig(packed_sequence_length=24)
    job = make_job(artifacts, groups, config=config)
    assert order(job) == order(replace(job, attempt=2))
    assert len(set(order(job))) == 8


def test_a_stop_lets_a_job_end_within_its_grace(artifacts, base):
    class Learners(RecordingLearners):
        def step(self, *args):
            coordinator.stop()
            store.jobs.append(make_job(artifacts))
            return super().step(*args)

    store = RecordingStore(make_job(artifacts))
    coordinator = make_coordinator(base, store, artifacts, Learners(step_s=0.2))
    coordinator.run()
    assert store.order == ["training_started", "gradient_step", "complete"]
    assert len(store.jobs) == 1, "a job was claimed after the stop"


def test_a_job_that_outlives_the_grace_is_handed_back_and_no_try_is_counted(artifacts, base):
    class Learners(RecordingLearners):
        def step(self, *args):
            coordinator.stop()
            return super().step(*args)

    store = RecordingStore(make_job(artifacts, attempt=3))
    coordinator = make_coordinator(base, store, artifacts, Learners(step_s=0.2), stop_grace_s=0.1, max_attempts=3)
    coordinator.run()
    assert store.order == ["training_started", "hand_back"]


def test_the_reason_for_waiting_is_shown_until_the_job_begins(run, artifacts):
    class Learners(RecordingLearners):
        def start(self, on_wait):
            for self.waiting_for in ("room", "room", None):
                on_wait()

    store = RecordingStore(make_job(artifacts))
    run(store, Learners())
    assert store.log[:2] == [("waiting", "room"), ("waiting", None)]
    assert store.order[2:] == ["training_started", "gradient_step", "complete"]


def test_a_job_that_trains_nothing_says_why_and_its_version_advances(run, artifacts):
    groups = [{"trajectories": [trajectory(0.1 + 0.2 + 0.3, 10, 11), trajectory(0.3 + 0.2 + 0.1, 12, 13)]}]
    store = RecordingStore(make_job(artifacts, groups))
    assert run(store).log == []
    assert store.order == ["training_started", "warning", "complete"]
    started, warning = store.log[0][1], store.log[1][1]
    assert (started["num_sequences"], started["num_trained_trajectories"], started["num_trained_tokens"]) == (0, 0, 0)
    assert (warning["kind"], warning["counts"]) == ("nothing_trained", {"equal_rewards": 2})
    assert store.log[-1] == ("complete", 4, "digest-before")


def test_a_job_that_trains_a_part_says_which_part_it_leaves_out(run, artifacts):
    unlike = trajectory(1.0, 10, 11) | {"run": "a"}
    unlike["messages_and_choices"][1]["sampled_with"] = {"top_p": 0.5}
    groups = [{"trajectories": [unlike, trajectory(0.0, 12, 13, 14)]}, {"trajectories": [trajectory(1.0, 15)]}]
    store = RecordingStore(make_job(artifacts, groups))
    run(store)
    assert store.order == ["training_started", "warning", "warning", "warning", "gradient_step", "complete"]
    assert (store.log[0][1]["num_trained_groups"], store.log[0][1]["num_trained_tokens"]) == (1, 5)
    assert {entry[1]["kind"]: entry[1]["counts"] for entry in store.log if entry[0] == "warning"} == {
        "partly_trained": {"alone_in_group": 1},
        "other_distribution": {"top_p": 2},
        "ignored_fields": {"trajectory.run": 1},
    }
