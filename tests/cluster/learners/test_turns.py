"""Turns on the learners, by hand: a small job goes before a big one, equal jobs follow each other, and none starves."""

import threading

import pytest
from waiting import wait_until

from tandem.cluster.errors import JobCancelledError, LearnersLostError
from tandem.cluster.learners.turns import Turns
from tandem.cluster.processes.waiting import wait_on


class Simulation:
    """Jobs that take gradient steps of one token, 1 s each, whenever they have the turn."""

    def __init__(self):
        self.now = 0.0
        self.turns = Turns(lambda: self.now)
        self.jobs = {}
        self.waiting = {}
        self.steps = []

    def arrive(self, name, num_tokens):
        self.jobs[name] = self.turns.join(num_tokens)
        self._ask(name)

    def _ask(self, name):
        """Wait for the turn in a thread, as a job does."""
        held = threading.Event()

        def hold():
            self.jobs[name].hold(wait_on)
            held.set()

        threading.Thread(target=hold, daemon=True).start()
        self.waiting[name] = held
        turn = self.jobs[name]
        wait_until(lambda: held.is_set() or turn in self.turns._waiting)

    def step(self):
        """Let the job that has the turn take a step, and ask again unless it was its last."""
        wait_until(lambda: self.turns._holder is not None)
        [name] = [name for name, turn in self.jobs.items() if turn is self.turns._holder]
        assert self.waiting.pop(name).wait(300)
        self.now += 1
        self.steps.append(name)
        turn = self.jobs[name]
        turn.trained(1, 1.0)
        if turn._left:
            self._ask(name)
        else:
            turn.close()


@pytest.fixture
def simulation():
    return Simulation()


def test_a_small_job_takes_its_turn_after_one_step_of_a_big_one(simulation):
    simulation.arrive("big", 50)
    for _ in range(10):
        simulation.step()
    simulation.arrive("small", 2)
    for _ in range(5):
        simulation.step()
    # It arrives between two steps: its slowdown is 2 / 2 at first, after a step 3 / 2, which isn't more than 1.5 times
    # that of the big job, and after another one 4 / 2.
    assert "".join(name[0] for name in simulation.steps[10:]) == "bbssb"


def test_jobs_of_one_size_follow_each_other(simulation):
    simulation.arrive("first", 10)
    simulation.step()
    simulation.arrive("second", 10)
    for _ in range(19):
        simulation.step()
    # Half of its work later, the second would be slowed down 1.5 times, but by then the first is too near its end.
    assert simulation.steps.index("second") >= 6
    assert simulation.steps.count("first") == simulation.steps.count("second") == 10


def test_small_jobs_cannot_keep_a_big_one_waiting(simulation):
    """One small job of two steps after the other takes a part of the learners, not all, and not much less than half."""
    simulation.arrive("big", 20)
    simulation.arrive("small", 2)
    while "big" in simulation.jobs and simulation.jobs["big"]._left:
        simulation.step()
        if not simulation.jobs["small"]._left:
            simulation.arrive("small", 2)
        assert len(simulation.steps) < 80
    assert 10 <= simulation.steps.count("small") <= 20


def test_a_wait_can_be_abandoned_and_a_closed_turn_is_over(simulation):
    simulation.arrive("holder", 10)
    other = simulation.turns.join(1)

    def cancel():
        raise JobCancelledError("please")

    with pytest.raises(JobCancelledError):
        other.hold(cancel)
    assert simulation.turns.is_held_by_another(other)
    other.close()
    with pytest.raises(LearnersLostError):
        other.hold(wait_on)
    simulation.jobs["holder"].close()
    assert not simulation.turns.is_held_by_another(other)
    third = simulation.turns.join(1)
    third.hold(wait_on)
