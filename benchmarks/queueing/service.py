"""A simulated service: RL runs, the path of a completion, and the path of a job. The stages follow tandem.serve and
tandem.cluster."""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import simpy

from queueing.costs import RENEW_S, Costs, Fleet, Workload
from queueing.resources import Process, Server, SharedRate, shorter_of_two

PREPARATIONS_AT_ONCE = 1  # it has four threads, but Python's interpreter lock lets only one run


@dataclass
class EngineReplica:
    """One engine: a process that parses and formats, and vLLM's core, which decodes all sequences together."""

    front: Server
    core: SharedRate
    versions: dict[tuple[int, int], simpy.Event] = field(default_factory=dict)
    """By run and step: the event that the version is loaded."""

    @property
    def num_here(self) -> int:
        return self.core.num_here + self.front.num_here


@dataclass
class Base:
    """One base model: its engines, and the coordinator that leads some jobs at once through its learners."""

    engines: list[EngineReplica]
    places: simpy.Resource
    """One for each of the jobs that run at once."""
    turn: simpy.Resource
    """Held by the job that uses the learners."""
    next_in_line: simpy.Resource
    """Held by the job that is prepared before it is claimed."""
    kept: OrderedDict[int, None] = field(default_factory=OrderedDict)
    """Runs whose states the learners cache; the last one is loaded."""
    held_s: float = 0.0
    """Total time in which jobs had the learners."""


@dataclass
class Run:
    number: int
    base: Base
    line: simpy.Resource
    """Held by the job that trains the run's model."""
    version: int = 0
    published_at: dict[int, float] = field(default_factory=dict)
    published: dict[int, simpy.Event] = field(default_factory=dict)
    """By step: the event that a client waits for."""


class Service:
    """A service of a given size. `stages` has the seconds of each job in each stage; `ready` has the seconds from a
    version's publication until each engine that needed it had loaded it."""

    def __init__(self, env: simpy.Environment, costs: Costs, fleet: Fleet, load: Workload, seed: int = 0):
        if fleet.engines % fleet.base_models:
            raise ValueError(f"{fleet.engines} engines can't be split evenly over {fleet.base_models} base models.")
        self.env, self.costs, self.fleet, self.load, self._rng = env, costs, fleet, load, random.Random(seed)
        self.proxies = [Server(env, "proxy") for _ in range(fleet.proxies)]
        self.apis = [Server(env, "API replica") for _ in range(fleet.api_replicas)]
        self.checkers = [Server(env, "check of payloads", PREPARATIONS_AT_ONCE) for _ in range(fleet.api_replicas)]
        self.preparation = Server(env, "preparation", PREPARATIONS_AT_ONCE)
        self.store = Server(env, "store", fleet.store_writers)
        self.bases = [self._base() for _ in range(fleet.base_models)]
        shared = fleet.artifact_bytes_per_s or math.inf
        self.link = SharedRate(env, "artifact store", lambda n: min(n * fleet.node_bytes_per_s, shared))
        self.stages: list[dict[str, float]] = []
        self.ready: list[float] = []
        self.batches: list[dict[str, float]] = []
        """Seconds of each batch until it was sampled, and until its job was accepted."""
        self.noticed: list[float] = []
        """Seconds from each publication to the end of a wait for it."""
        self.rollouts_done = 0
        self.request_s: list[float] = []

    @property
    def engines(self) -> list[EngineReplica]:
        return [engine for base in self.bases for engine in base.engines]

    def _base(self) -> Base:
        costs = self.costs

        def speed(n: int) -> float:
            return costs.engine_tokens_per_s * n / (n + costs.engine_half)

        def engine() -> EngineReplica:
            core = SharedRate(self.env, "engine", speed, costs.engine_max_seqs)
            return EngineReplica(Server(self.env, "engine process"), core)

        engines = [engine() for _ in range(self.fleet.engines // self.fleet.base_models)]
        places, turn, next_in_line = (simpy.Resource(self.env, n) for n in (self.fleet.jobs_at_once, 1, 1))
        return Base(engines, places, turn, next_in_line)

    def new_run(self, number: int) -> Run:
        """Return a run on the base model whose turn it is."""
        return Run(number, self.bases[number % len(self.bases)], simpy.Resource(self.env, 1))

    # The path of a completion

    def request(self, run: Run) -> Process:
        """Simulate one group: through a proxy to an engine, which has or fetches the newest version, and back."""
        costs, began = self.costs, self.env.now
        amounts = [self._num_tokens() for _ in range(self.load.completions)]
        total = sum(amounts)
        proxy = self._rng.choice(self.proxies)
        yield from proxy.use(costs.proxy.fixed / 2)
        engine, version = shorter_of_two(run.base.engines, self._rng), run.version  # pinned here, once
        yield from engine.front.use(costs.front.fixed)
        yield self._loaded(engine, run, version)
        yield self.env.all_of([engine.core.work(amount) for amount in amounts])
        yield from engine.front.use(costs.front.each * total)
        yield from proxy.use(costs.proxy.fixed / 2 + costs.proxy.each * total)
        self.rollouts_done += len(amounts)
        self.request_s.append(self.env.now - began)

    def _loaded(self, engine: EngineReplica, run: Run, version: int) -> simpy.Event:
        """Return the event that the version is loaded. A replica fetches a version once for all requests."""
        key = run.number, version
        if key not in engine.versions:
            engine.versions[key] = self.env.process(self._load_version(run, version))
        return engine.versions[key]

    def _load_version(self, run: Run, version: int) -> Process:
        if version == 0:
            return  # all engines have it before the first run begins
        yield from self._copy(self.costs.pulled_bytes)
        yield self.env.timeout(self.costs.adapter_load_s)
        self.ready.append(self.env.now - run.published_at[version])

    def _copy(self, num_bytes: float) -> Process:
        if self.fleet.artifact_bytes_per_s != 0:
            yield self.link.work(num_bytes)

    def _num_tokens(self) -> float:
        mean, cv = self.load.tokens, self.load.tokens_cv
        if cv == 0:
            return mean
        sigma = math.sqrt(math.log(1 + cv * cv))
        return self._rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)

    # The path of a job

    def run(self, run: Run) -> Process:
        """Simulate a run. A batch begins once the policy is at most `max_policy_lag` versions behind it."""
        for batch in count():
            yield from self._wait_for(run, batch - self.load.max_policy_lag)
            began = self.env.now
            yield self.env.all_of([self.env.process(self.request(run)) for _ in range(self.load.groups)])
            sampled = self.env.now
            yield from self._post(run)
            self.batches.append({"rollouts": sampled - began, "accept": self.env.now - sampled})
            self.env.process(self._train(run, batch + 1))

    def _wait_for(self, run: Run, version: int) -> Process:
        """Simulate a long poll: the API replica looks periodically whether the store has changed."""
        if version <= run.version:
            return
        api = shorter_of_two(self.apis, self._rng)
        yield from self._rng.choice(self.proxies).use(self.costs.proxy_small_s)
        yield from api.use(self.costs.api_small_s)
        yield run.published.setdefault(version, self.env.event())
        yield self.env.timeout(self._rng.uniform(0, self.fleet.version_poll_s))
        yield from api.use(self.costs.api_poll_s)
        self.noticed.append(self.env.now - run.published_at[version])

    def _post(self, run: Run) -> Process:
        costs, load = self.costs, self.load
        number = self._rng.randrange(len(self.apis))
        yield from self._rng.choice(self.proxies).use(costs.proxy_small_s)
        tokens = load.rollouts_per_job * load.tokens
        yield from self.apis[number].use(costs.api_small_s + costs.receive_token_s * tokens)
        yield from self.checkers[number].use(self._prepare_s())
        yield from self._write()

    def _prepare_s(self) -> float:
        return self.load.rollouts_per_job * self.costs.prepare.of(self.load.tokens)

    def _train(self, run: Run, version: int) -> Process:
        """Simulate a job: its model trains one at a time, its base model `jobs_at_once`, the learners one at a time."""
        base, came = run.base, self.env.now
        is_idle = base.places.count == 0
        waits = run.line.count > 0 or base.places.count == base.places.capacity
        ahead = self.env.process(self._prepare_ahead(base)) if waits else None
        with run.line.request() as first:
            yield first
            with base.places.request() as place:
                yield place
                if is_idle:
                    yield self.env.timeout(self._rng.uniform(0, self.fleet.claim_poll_s))
                stages = {"queued": self.env.now - came}
                renewing = self.env.process(self._renew())
                yield from self._stages(run, ahead, stages)
                renewing.interrupt()
        run.version, run.published_at[version] = version, self.env.now
        run.published.setdefault(version, self.env.event()).succeed()
        self.stages.append(stages)

    def _stages(self, run: Run, ahead: simpy.Event | None, seconds: dict[str, float]) -> Process:
        """Simulate a claimed job to its version, and record the seconds of its stages."""

        def timed(stage: str, work: Process) -> Process:
            entered = self.env.now
            yield from work
            seconds[stage] = self.env.now - entered

        yield from timed("claim", self._write())
        yield from timed("prepare", self._prepare(ahead))
        with run.base.turn.request() as turn:
            yield from timed("turn", _until(turn))
            held = self.env.now
            yield from timed("load", self._load_learners(run))
            yield from timed("steps", self._steps())
            run.base.held_s += self.env.now - held
        yield from timed("checkpoint", self._save())
        yield from timed("publish", self._write())

    def _prepare_ahead(self, base: Base) -> Process:
        with base.next_in_line.request() as place:
            yield place
            yield from self.preparation.use(self._prepare_s())

    def _prepare(self, ahead: simpy.Event | None) -> Process:
        yield from _until(ahead) if ahead else self.preparation.use(self._prepare_s())
        yield self.env.timeout(self.costs.job_small_s)
        yield from self._write()

    def _load_learners(self, run: Run) -> Process:
        """Load a state, which is free if it is cached. Ranks on other nodes fetch it too, all at once."""
        kept, is_there = run.base.kept, run.number in run.base.kept
        kept[run.number] = None
        kept.move_to_end(run.number)
        while len(kept) > 1 + self.fleet.kept_state_bytes // max(self.costs.checkpoint_bytes, 1):
            kept.popitem(last=False)
        if is_there:
            return
        copies = [self.env.process(self._copy(self.costs.checkpoint_bytes)) for _ in range(self.fleet.learners - 1)]
        yield self.env.all_of(copies)
        yield self.env.timeout(self.costs.load.of(self.costs.checkpoint_bytes))

    def _steps(self) -> Process:
        """Take gradient steps of one packed sequence per learner. A step takes as long as its longest sequence."""
        costs, learners, rows = self.costs, self.fleet.learners, self._rows()
        for start in range(0, len(rows), learners):
            longest = max(rows[start : start + learners])
            yield self.env.timeout(longest * costs.learner_token_s + costs.step_s + self.allreduce_s(learners))
            yield from self._write()

    def _rows(self) -> Sequence[float]:
        """Return the tokens of the packed sequences: groups, each with its prompt once, fill up to packed_length."""
        load, rows = self.load, [0.0]
        for _ in range(load.groups):
            prompt = load.prompt_tokens
            for _ in range(load.completions):
                tokens = min(self._num_tokens(), load.packed_length - load.prompt_tokens)
                if rows[-1] and rows[-1] + prompt + tokens > load.packed_length:
                    rows.append(0.0)
                    prompt = load.prompt_tokens
                rows[-1] += prompt + tokens
                prompt = 0
        return rows

    def allreduce_s(self, learners: int) -> float:
        """Return the time of a ring all-reduce: 2 (N - 1) hops, each of 1 / N of the gradient."""
        if learners == 1:
            return 0.0
        hops = 2 * (learners - 1)
        return hops * (self.costs.allreduce_latency_s
                       + self.costs.gradient_bytes / learners / self.costs.allreduce_bytes_per_s)  # fmt: skip

    def _save(self) -> Process:
        yield self.env.timeout(self.costs.save.of(self.costs.checkpoint_bytes))
        yield from self._copy(self.costs.checkpoint_bytes)

    def _renew(self) -> Process:
        try:
            while True:
                yield self.env.timeout(RENEW_S)
                yield from self._write()
        except simpy.Interrupt:
            return

    def _write(self) -> Process:
        yield from self.store.use(self.costs.store_write_s)


def _until(event: simpy.Event) -> Process:
    yield event
