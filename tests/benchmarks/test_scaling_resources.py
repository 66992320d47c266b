"""The parts of the simulation against closed-form queues and hand-worked schedules."""

import random

import pytest
import simpy
from queueing.resources import Server, SharedRate, shorter_of_two


def mean_wait(service_time, arrivals_per_s, num_arrivals=40_000):
    """Return the mean wait at a single server with Poisson arrivals."""
    env, rng = simpy.Environment(), random.Random(1)
    server = Server(env, "server")

    def arrive():
        for _ in range(num_arrivals):
            yield env.timeout(rng.expovariate(arrivals_per_s))
            env.process(server.use(service_time(rng)))

    env.process(arrive())
    env.run()
    assert server.num_served == num_arrivals
    return server.waited_s / num_arrivals


def test_wait_of_exponential_service_is_that_of_m_m_1():
    # rho / (mu - lambda) = 0.6 / (1 - 0.6)
    assert mean_wait(lambda rng: rng.expovariate(1), 0.6) == pytest.approx(1.5, rel=0.06)


def test_wait_of_constant_service_is_that_of_m_d_1():
    # Pollaczek-Khinchine: rho s / (2 (1 - rho)), half of M/M/1's
    assert mean_wait(lambda rng: 1.0, 0.6) == pytest.approx(0.75, rel=0.04)


def test_a_second_server_halves_only_the_queue():
    """Three works of 2 s that arrive together at two servers end at 2, 2 and 4 s; one waits 2 s."""
    env = simpy.Environment()
    server = Server(env, "server", capacity=2)
    for _ in range(3):
        env.process(server.use(2.0))
    env.run()
    assert (env.now, server.busy_s, server.waited_s, server.stayed_s) == (4.0, 6.0, 2.0, 8.0)


def ends(shared, env, works):
    """Return when each of the works (start, amount) ends."""
    found = {}

    def work(number, start, amount):
        yield env.timeout(start)
        yield shared.work(amount)
        found[number] = env.now

    for number, (start, amount) in enumerate(works):
        env.process(work(number, start, amount))
    env.run()
    return [found[number] for number in range(len(works))]


def test_works_share_a_rate_equally():
    """1 and 3 at rate 1: each gets 1/2 until the first ends at 2; the other finishes its rest of 2 alone at 4."""
    env = simpy.Environment()
    shared = SharedRate(env, "link", lambda n: 1.0)
    assert ends(shared, env, [(0, 1), (0, 3)]) == pytest.approx([2, 4])
    assert shared.done == pytest.approx(4)


def test_a_later_work_slows_the_first():
    """4 alone for 2 s at rate 1, then 2 beside it, each at 1/2: both have 2 left, so both end at 2 + 4."""
    env = simpy.Environment()
    assert ends(SharedRate(env, "link", lambda n: 1.0), env, [(0, 4), (2, 2)]) == pytest.approx([6, 6])


def test_the_rate_may_depend_on_how_many_there_are():
    """10 n / (n + 1): alone 5 per second. Two of 20: 10/3 each, done at 6 together."""
    env = simpy.Environment()
    assert ends(SharedRate(env, "engine", lambda n: 10 * n / (n + 1)), env, [(0, 20), (0, 20)]) == pytest.approx([6, 6])
    env = simpy.Environment()
    assert ends(SharedRate(env, "engine", lambda n: 10 * n / (n + 1)), env, [(0, 20)]) == pytest.approx([4])


def test_beyond_the_limit_works_wait():
    env = simpy.Environment()
    assert ends(SharedRate(env, "engine", lambda n: 1.0, limit=1), env, [(0, 1), (0, 3), (0, 1)]) == [1, 4, 5]


@pytest.mark.parametrize("size", [lambda rng: 1.0, lambda rng: rng.lognormvariate(-0.5, 1)])
def test_stay_under_processor_sharing_depends_on_the_mean_size_alone(size):
    # M/G/1-PS: E[S] / (1 - rho) = 1 / (1 - 0.5), for constant sizes and for lognormal ones of mean 1
    env, rng = simpy.Environment(), random.Random(2)
    shared, stays = SharedRate(env, "engine", lambda n: 1.0), []

    def work(amount):
        began = env.now
        yield shared.work(amount)
        stays.append(env.now - began)

    def arrive():
        for _ in range(30_000):
            yield env.timeout(rng.expovariate(0.5))
            env.process(work(size(rng)))

    env.process(arrive())
    env.run()
    assert sum(stays) / len(stays) == pytest.approx(2.0, rel=0.06)


def test_the_shorter_of_two_replicas_is_chosen():
    env = simpy.Environment()
    idle, busy = Server(env, "a"), Server(env, "b")
    env.process(busy.use(1.0))
    env.run(until=0.5)
    rng = random.Random(0)
    assert {shorter_of_two([idle, busy], rng).name for _ in range(20)} == {"a"}
    assert shorter_of_two([busy], rng) is busy
