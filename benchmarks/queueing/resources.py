"""The queues of a simulated service: servers that take one request after the other, and rates shared by requests."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Generator, Sequence
from itertools import count
from typing import Any

import simpy

Process = Generator[simpy.Event, Any, Any]


class Server:
    """`capacity` equal servers and one queue, first come, first served: a process, a store's writer.

        yield from server.use(seconds)

    `busy_s` is summed over servers, `waited_s` and `stayed_s` over requests that have been served.
    """

    def __init__(self, env: simpy.Environment, name: str, capacity: int = 1):
        self._env, self._queue = env, simpy.Resource(env, capacity)
        self.name, self.capacity = name, capacity
        self.busy_s = self.waited_s = self.stayed_s = 0.0
        self.num_served = 0

    @property
    def num_here(self) -> int:
        """Return the number of requests that wait or are served."""
        return self._queue.count + len(self._queue.queue)

    def use(self, seconds: float) -> Process:
        came = self._env.now
        with self._queue.request() as turn:
            yield turn
            began = self._env.now
            yield self._env.timeout(seconds)
        self.busy_s += seconds
        self.waited_s += began - came
        self.stayed_s += self._env.now - came
        self.num_served += 1


class SharedRate:
    """Concurrent work at a rate that depends on the number of works: decoding sequences, copies over a link.

        yield shared.work(amount)

    `rate(n)` is the total amount per second of n concurrent works, each getting an equal part. At most `limit` run;
    others wait, first come, first served. Between two changes each work advances by the same amount, so one clock of
    that amount orders all ends (Kleinrock's processor sharing, in virtual time).
    """

    def __init__(self, env: simpy.Environment, name: str, rate: Callable[[int], float], limit: int | None = None):
        self._env, self._rate, self._limit = env, rate, limit
        self.name, self.done = name, 0.0
        self._advanced = self._since = 0.0  # the clock of amounts, and when it was last set
        self._ends: list[tuple[float, int, float, simpy.Event]] = []
        self._waiting: deque[tuple[float, simpy.Event]] = deque()
        self._number, self._timer = count(), 0

    @property
    def num_here(self) -> int:
        return len(self._ends) + len(self._waiting)

    def work(self, amount: float) -> simpy.Event:
        """Return the event that the amount is done."""
        finished = self._env.event()
        self._advance()
        self._waiting.append((amount, finished))
        self._begin_waiting()
        self._set_timer()
        return finished

    def _advance(self) -> None:
        """Advance the clock. `done` includes the finished part of unfinished work."""
        if self._ends:
            each = (self._env.now - self._since) * self._rate(len(self._ends)) / len(self._ends)
            self._advanced += each
            self.done += each * len(self._ends)
        self._since = self._env.now

    def _begin_waiting(self) -> None:
        while self._waiting and (self._limit is None or len(self._ends) < self._limit):
            amount, finished = self._waiting.popleft()
            heapq.heappush(self._ends, (self._advanced + amount, next(self._number), amount, finished))

    def _set_timer(self) -> None:
        self._timer += 1
        if not self._ends:
            return
        left = max(0.0, self._ends[0][0] - self._advanced)
        number = self._timer
        timer = self._env.timeout(left * len(self._ends) / self._rate(len(self._ends)))
        timer.callbacks.append(lambda _: self._end(number))

    def _end(self, timer: int) -> None:
        if timer != self._timer:  # newer work has set another timer
            return
        self._advance()
        first = self._ends[0][0]
        while self._ends and self._ends[0][0] <= first:
            heapq.heappop(self._ends)[3].succeed()
        self._begin_waiting()
        self._set_timer()


def shorter_of_two(queues: Sequence[Any], rng: random.Random) -> Any:
    """Return the less busy of two random queues, as Ray Serve chooses a replica."""
    if len(queues) == 1:
        return queues[0]
    return min(rng.sample(queues, 2), key=lambda queue: queue.num_here)
