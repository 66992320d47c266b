"""Amounts that an engine uses for each key, model and version: tokens, and a share of the time in which it works.

    meter = UsageMeter()
    MeteredOutputs(llm.output_processor, meter).install()
    CHARGED.set(Charged(key_id="k", model_id="m", step=3))     # in the task of a request
    ...
    number, batches = meter.take(acknowledged)

**Engine-seconds.** While the engine has n sequences that aren't finished, each is charged 1/n of the time that passes.
So all charges together are the time in which the engine had work. A sequence counts from its arrival in the engine to
its last token, also while vLLM lets it wait; a request for n choices has n sequences.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, unquote

if TYPE_CHECKING:
    from vllm.v1.engine.output_processor import OutputProcessor, RequestState

Purpose = Literal["sample", "score", "check"]
MAX_BATCHES = 100
"""Batches that wait to be fetched. Beyond it, new amounts are added to the last one."""
PAUSE_S = 1.0
"""Completions of a model that follow each other so soon count as one stretch of sampling."""


@dataclass(frozen=True)
class Charged:
    """To whom the work on a request is charged. Empty texts stand for none."""

    purpose: Purpose = "check"
    """Completions, logprobs for a job, or the service's own checks."""
    entity: str = ""
    key_id: str = ""
    model_id: str = ""
    step: int = 0
    job_id: str = ""

    def header(self) -> str:
        """Return this as the value of CHARGED_HEADER, without purpose and step."""
        return "/".join(quote(part, safe="") for part in (self.entity, self.key_id, self.model_id, self.job_id))

    @classmethod
    def of_header(cls, value: str, step: int) -> Charged:
        """Read the header of a completion. Raises ValueError."""
        entity, key_id, model_id, job_id = map(unquote, value.split("/"))
        return cls("sample", entity, key_id, model_id, step, job_id)


NOBODY = Charged()
CHARGED: ContextVar[Charged] = ContextVar("charged", default=NOBODY)
"""To whom the requests of this task are charged."""


@contextmanager
def charging(charged: Charged) -> Iterator[None]:
    """Charge the requests of this block, and of tasks that it creates."""
    token = CHARGED.set(charged)
    try:
        yield
    finally:
        CHARGED.reset(token)


@dataclass
class Prefill:
    """The prompt of a request, once it has been computed."""

    num_cached: int = 0
    """Of its tokens, those that the prefix cache had."""


_PREFILL: ContextVar[Prefill | None] = ContextVar("prefill", default=None)


@contextmanager
def watching_prefill() -> Iterator[Prefill]:
    """Watch the prompt of the request of this block. One for several choices has one prompt."""
    prefill = Prefill()
    token = _PREFILL.set(prefill)
    try:
        yield prefill
    finally:
        _PREFILL.reset(token)


@dataclass
class Used:
    """Amounts."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Of the prompt tokens, those that the prefix cache had."""
    sampled_tokens: int = 0
    engine_seconds: float = 0.0

    def add(self, other: Used) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Sampling:
    """A stretch of time, in Unix seconds, in which completions of a model ran."""

    model_id: str
    began_at: float
    ended_at: float


@dataclass
class UsageBatch:
    """The amounts since the batch before it. Numbers count from 1."""

    number: int
    used: dict[Charged, Used] = field(default_factory=dict)
    sampling: list[Sampling] = field(default_factory=list)


@dataclass(frozen=True)
class EngineUsage:
    """What an engine replica has counted."""

    source: str
    """The replica."""
    base_model: str
    batches: list[UsageBatch]

    def to_json(self) -> bytes:
        batches = [
            {
                "number": batch.number,
                "used": [[vars(charged), vars(used)] for charged, used in batch.used.items()],
                "sampling": [vars(stretch) for stretch in batch.sampling],
            }
            for batch in self.batches
        ]
        return json.dumps({"source": self.source, "base_model": self.base_model, "batches": batches}).encode()

    @classmethod
    def of_json(cls, content: bytes) -> EngineUsage:
        value = json.loads(content)
        batches = [
            UsageBatch(
                batch["number"],
                {Charged(**charged): Used(**used) for charged, used in batch["used"]},
                [Sampling(**stretch) for stretch in batch["sampling"]],
            )
            for batch in value["batches"]
        ]
        return cls(value["source"], value["base_model"], batches)


@dataclass
class _Open:
    """A sequence in the engine."""

    charged: Charged
    is_first: bool
    """Of its request, whose prompt it counts."""
    virtual_since: float
    used: Used = field(default_factory=Used)
    """Since the last batch."""


class UsageMeter:
    """Counts for one engine. Use it in one event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, wall_clock: Callable[[], float] = time.time):
        self._clock, self._wall_offset = clock, wall_clock() - clock()
        self._open: dict[str, _Open] = {}
        self._virtual = 0.0  # engine-seconds charged so far to a sequence that was always there
        self._virtual_at = clock()
        self._batches = [UsageBatch(1)]
        self._sampling: dict[str, tuple[int, float]] = {}  # of each model: open sequences, begin
        self._paused: dict[str, Sampling] = {}
        self.busy_s = 0.0
        """The time in which the engine has had work."""
        self.total = Used()
        """All amounts so far, whoever is charged."""

    def begin(self, id: str, charged: Charged, is_first: bool = True) -> None:
        """A sequence arrives."""
        self._pass_time()
        self._open[id] = _Open(charged, is_first, self._virtual)
        if charged.purpose == "sample":
            number, began = self._sampling.get(charged.model_id, (0, self._virtual_at))
            if number == 0 and (paused := self._paused.pop(charged.model_id, None)):
                if self._virtual_at + self._wall_offset - paused.ended_at <= PAUSE_S:
                    began = paused.began_at - self._wall_offset
                else:
                    self._batches[-1].sampling.append(paused)
            self._sampling[charged.model_id] = number + 1, began

    def sampled(self, id: str, num_tokens: int) -> None:
        """A sequence has new tokens."""
        entry = self._open.get(id)
        if entry is not None and entry.charged.purpose == "sample":
            entry.used.sampled_tokens += num_tokens

    def prefilled(self, id: str, num_tokens: int, num_cached: int) -> None:
        """The prompt of a sequence has been computed."""
        entry = self._open.get(id)
        if entry is not None and entry.is_first and entry.charged.purpose == "sample":
            entry.used.requests += 1
            entry.used.prompt_tokens += num_tokens
            entry.used.cached_prompt_tokens += num_cached

    def end(self, id: str) -> None:
        """A sequence is finished or was aborted."""
        self._pass_time()
        entry = self._open.pop(id, None)
        if entry is None:
            return
        self._charge(entry)
        if entry.charged.purpose == "sample":
            model_id = entry.charged.model_id
            number, began = self._sampling.pop(model_id)
            if number > 1:
                self._sampling[model_id] = number - 1, began
            else:
                offset = self._wall_offset
                self._paused[model_id] = Sampling(model_id, began + offset, self._virtual_at + offset)

    def take(self, acknowledged: int = 0) -> list[UsageBatch]:
        """Close the current batch and return those after number `acknowledged`, which the caller has recorded.

        Sequences that still run are charged for what they have used so far. A batch is returned until it is
        acknowledged, so that none is lost with an answer.
        """
        self._pass_time()
        for entry in self._open.values():
            self._charge(entry)
        current, offset = self._batches[-1], self._wall_offset
        for model_id, (number, began) in self._sampling.items():
            current.sampling.append(Sampling(model_id, began + offset, self._virtual_at + offset))
            self._sampling[model_id] = number, self._virtual_at
        current.sampling += self._paused.values()
        self._paused.clear()
        self._batches = [batch for batch in self._batches if batch.number > acknowledged or batch is current]
        if (current.used or current.sampling) and len(self._batches) < MAX_BATCHES:
            self._batches.append(UsageBatch(current.number + 1))
        return [batch for batch in self._batches[:-1] if batch.number > acknowledged]

    def _pass_time(self) -> None:
        now = self._clock()
        if self._open:
            passed = now - self._virtual_at
            self._virtual += passed / len(self._open)
            self.busy_s += passed
        self._virtual_at = now

    def _charge(self, entry: _Open) -> None:
        entry.used.engine_seconds += self._virtual - entry.virtual_since
        entry.virtual_since = self._virtual
        self._batches[-1].used.setdefault(entry.charged, Used()).add(entry.used)
        self.total.add(entry.used)
        entry.used = Used()


class MeteredOutputs:
    """Meters all sequences of an engine where vLLM adds them, takes their tokens, and ends or aborts them."""

    def __init__(self, processor: OutputProcessor, meter: UsageMeter):
        self._processor, self._meter = processor, meter
        self._add, self._process, self._abort = (
            processor.add_request,
            processor.process_outputs,
            processor.abort_requests,
        )
        self._watched: dict[str, Prefill] = {}

    def install(self) -> None:
        processor: Any = self._processor
        processor.add_request = self._added
        processor.process_outputs = self._processed
        processor.abort_requests = self._aborted

    def _added(self, request: Any, prompt: Any, parent_req: Any = None, request_index: int = 0, *rest: Any) -> None:
        self._add(request, prompt, parent_req, request_index, *rest)
        self._meter.begin(request.request_id, CHARGED.get(), request_index == 0)
        if request_index == 0 and (watched := _PREFILL.get()) is not None:
            self._watched[request.request_id] = watched

    def _processed(self, outputs: list[Any], *args: Any, **options: Any) -> Any:
        states, meter = self._processor.request_states, self._meter
        known: list[tuple[str, RequestState]] = []
        for output in outputs:
            if state := states.get(output.request_id):
                known.append((output.request_id, state))
                meter.sampled(output.request_id, len(output.new_token_ids))
                if state.is_prefilling:
                    num_cached = output.prefill_stats.num_cached_tokens if output.prefill_stats else 0
                    meter.prefilled(output.request_id, state.prompt_len, num_cached)
                    if output.request_id in self._watched:
                        self._watched[output.request_id].num_cached = num_cached
        processed = self._process(outputs, *args, **options)
        for id, _ in known:
            if id not in states:
                meter.end(id)
                self._watched.pop(id, None)
        return processed

    def _aborted(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        aborted = self._abort(request_ids, internal=internal)
        for id in aborted:
            self._meter.end(id)
            self._watched.pop(id, None)
        return aborted
