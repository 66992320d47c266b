"""A journal in memory, a learner group in this process, and bodies of calls."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise

import numpy as np

from tandem.cluster.calls.call import NOTHING_USED, Anchor, CallStore, ClaimedRun, RunCall, SaveRefusedError
from tandem.cluster.calls.call_metrics import CallMetrics
from tandem.cluster.calls.parts import CallParts
from tandem.cluster.calls.runner import CallRunner
from tandem.cluster.calls.wire import messages
from tandem.cluster.config import BaseModelConfig, CoordinatorConfig, LearnersConfig, TinkerConfig
from tandem.cluster.errors import LearnersLostError, LeaseLostError, StageError
from tandem.cluster.learners.training import SealedVersion
from tandem.cluster.learners.turns import Turns
from tandem.cluster.learners.worker import LearnerWorker

CONFIG = BaseModelConfig(
    name="tandem/tiny", path="builtin:tiny", max_model_len=256, learners=LearnersConfig(device="cpu")
)
ADAM = {"learning_rate": 0.01}


def body(seed: int, num_datums: int = 3, num_tokens: int = 20, loss: str = "cross_entropy") -> bytes:
    """Return a forward_backward over random datums."""
    random = np.random.default_rng(seed)
    request = messages.ForwardBackwardRequest(model_id="run", seq_id=1, loss_fn=loss)
    for _ in range(num_datums):
        datum = request.data.add()
        ids = random.integers(5, 200, num_tokens)
        datum.model_input.add().encoded_text.tokens = ids.astype("<i4").tobytes()
        columns = {"target_tokens": (np.roll(ids, -1), "<i8", messages.INT64)}
        if loss == "cross_entropy":
            columns["weights"] = (random.normal(size=num_tokens), "<f4", messages.FLOAT32)
        else:
            columns["logprobs"] = (random.normal(-3, 1, num_tokens), "<f4", messages.FLOAT32)
            columns["advantages"] = (random.normal(size=num_tokens), "<f4", messages.FLOAT32)
        for name, (values, numpy_type, dtype) in columns.items():
            column = datum.loss_fn_inputs[name]
            column.dense, column.dtype = values.astype(numpy_type).tobytes(), dtype
            column.shape.append(num_tokens)
    return request.SerializeToString()


def read_output(result) -> tuple[list[np.ndarray], dict[str, float]]:
    """Return logprobs and metrics of a forward_backward's answer."""
    output = messages.ForwardBackwardOutput.FromString(result.content)
    logprobs = []
    for record in output.loss_fn_outputs:
        column = record.fields["logprobs"]
        offsets = np.frombuffer(column.offsets, "<i8")
        logprobs += [np.frombuffer(column.data[a:b], "<f4") for a, b in pairwise(offsets)]
    return logprobs, dict(output.metrics)


class MemoryJournal(CallStore):
    """Runs by id, each with its calls. `answers`, `errors` and `usages` are kept by (run, seq)."""

    def __init__(self, artifacts, initial_digest):
        self.artifacts, self.initial = artifacts, initial_digest
        self.runs, self.calls, self.answers, self.errors = {}, {}, {}, {}
        self.saved, self.usages, self.deleted, self.waits = {}, {}, [], []
        self.claimed, self.unloaded = set(), set()
        self.lock, self.mark = threading.RLock(), 0
        self.before_answer = lambda run, call: None

    def add_run(self, run_id, digest=None, has_optimizer=False):
        anchor = Anchor(digest or self.initial, 0, has_optimizer)
        self.runs[run_id] = ClaimedRun(
            run_id, f"model-{run_id}", f"me/tinker/{run_id}", CONFIG.name, 0, anchor, 0, None, "me"
        )
        self.calls[run_id] = {}
        return run_id

    def submit(self, run_id, kind, content=None, seq=None, **options):
        """Add a call behind the others, or with this number, and return its number."""
        with self.lock:
            seq = seq or max(self.calls[run_id], default=0) + 1
            key = None
            if content is not None:
                key = f"calls/{run_id}/{seq}"
                self.artifacts.write_blob(key, content)
            self.calls[run_id][seq] = RunCall(seq, kind, key, options, len(content or b""))
            self.mark += 1
            return seq

    def fail(self, run_id, seq, kind="missing"):
        """Add a call that failed before it could be executed."""
        with self.lock:
            self.calls[run_id][seq] = RunCall(seq, kind, None, {}, 0, "failed")
            self.mark += 1

    def wait(self, run_id, seq, timeout_s=60):
        """Return the answer of a call. Raise an error with its message if it failed."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if (run_id, seq) in self.answers:
                return self.answers[run_id, seq]
            if (run_id, seq) in self.errors:
                raise CallFailedError(*self.errors[run_id, seq])
            time.sleep(0.002)
        raise TimeoutError(f"call {seq} of {run_id}")

    def take_over(self, run_id):
        """Let another coordinator have had the claim."""
        with self.lock:
            run = self.runs[run_id]
            self.runs[run_id] = replace(run, attempt=run.attempt + 1)
            self.claimed.discard(run_id)
            self.mark += 1

    def _held(self, run):
        if self.runs[run.id].attempt != run.attempt or run.id in self.unloaded:
            raise LeaseLostError(run.id)
        return self.runs[run.id]

    def ready_runs(self, base_model):
        with self.lock:
            return [run for run in self.runs if self._next(run) and run not in self.unloaded]

    def _next(self, run_id):
        return any(call.outcome is None for call in self._consecutive(run_id))

    def _consecutive(self, run_id):
        found, seq = [], self.runs[run_id].applied_seq
        while (seq := seq + 1) in self.calls[run_id]:
            found.append(self.calls[run_id][seq])
        return found

    def claim_run(self, base_model, owner, lease_s):
        with self.lock:
            for run_id in self.ready_runs(base_model):
                if run_id not in self.claimed:
                    self.claimed.add(run_id)
                    run = self.runs[run_id]
                    self.runs[run_id] = replace(run, attempt=run.attempt + 1)
                    return self.runs[run_id]
        return None

    def renew(self, run, lease_s):
        self._held(run)

    def release(self, run):
        with self.lock:
            if self.runs[run.id].attempt == run.attempt:
                self.claimed.discard(run.id)
                self.mark += 1

    def answered_since_anchor(self, run):
        with self.lock:
            row = self._held(run)
            calls = self.calls[run.id]
            return row.anchor, [calls[seq] for seq in range(row.anchor.seq + 1, row.applied_seq + 1)]

    def next_calls(self, run):
        with self.lock:
            self._held(run)
            return self._consecutive(run.id)

    def check_save(self, run, call):
        with self.lock:
            self._held(run)
            saves = [self.calls[run.id][seq] for run_id, seq in self.saved if run_id == run.id]
            name = call.options.get("name")
            if name is not None and any(save.options.get("name") == name for save in saves):
                raise SaveRefusedError(f"{name} exists already")
            return 1 + sum(save.kind == "save_for_sampler" for save in saves)

    def answer(self, run, call, result):
        self.before_answer(run, call)
        with self.lock:
            row = self._held(run)
            self._end(run, call, "answered")
            self.answers[run.id, call.seq] = result
            self.usages[run.id, call.seq] = result.usage
            if result.saved:
                self.saved[run.id, call.seq] = result.saved
            return self._move(row.id, result.anchor) if result.anchor else []

    def refuse(self, run, call, message, category, usage=NOTHING_USED):
        with self.lock:
            self._held(run)
            self.usages[run.id, call.seq] = usage
            self._end(run, call, "failed")
            self.errors[run.id, call.seq] = message, category

    def _end(self, run, call, outcome):
        self.calls[run.id][call.seq] = replace(call, outcome=outcome)
        self.runs[run.id] = replace(self.runs[run.id], applied_seq=call.seq)
        self.mark += 1

    def set_anchor(self, run, anchor):
        with self.lock:
            self._held(run)
            return self._move(run.id, anchor)

    def _move(self, run_id, anchor):
        if anchor.seq <= self.runs[run_id].anchor.seq:
            return []
        self.runs[run_id] = replace(self.runs[run_id], anchor=anchor)
        old = [call.body_key for seq, call in self.calls[run_id].items() if seq <= anchor.seq and call.body_key]
        self.deleted += old
        return old

    def report_waiting(self, run, reason):
        self.waits.append((run.id, reason))

    def fail_gaps(self, base_model):
        return 0

    def change_mark(self):
        return self.mark


class CallFailedError(Exception):
    """The message and the category of a failed call."""


class _Method:
    def __init__(self, method):
        self.remote = method

    def options(self, **_):
        return self


class _Actor:
    """Calls a worker at once, with the interface of an actor's handle."""

    def __init__(self, worker):
        self._worker = worker

    def __getattr__(self, name):
        return _Method(getattr(self._worker, name))


class PlainGroup:
    """One learner in this process. `lose` ends it, as its death would: the next call that needs it fails."""

    count, waiting_for, is_ready = 1, None, True

    def __init__(self, root, limits):
        self.turns, self.workers, self.num_starts = Turns(), [], 0
        self._root, self._limits = root, limits
        self.before_call = lambda stage: None

    def start(self, on_wait):
        if not self.workers:
            worker = LearnerWorker(0, 1, CONFIG, self._root, None, self._limits)
            worker.start(None, 60)
            self.workers, self.num_starts = [_Actor(worker)], self.num_starts + 1

    def lose(self):
        self.workers = []

    def has(self, workers):
        return workers is self.workers

    def call_all(self, workers, stage, on_wait, call, watched_for=None):
        on_wait()
        try:
            self.before_call(stage)
            if workers is not self.workers:
                raise LearnersLostError("The learners ended during the work for another job.")
            return [call(worker) for worker in workers]
        except StageError:
            self.lose()
            raise

    def seal(self, workers, metadata, save, turn, on_wait):
        return SealedVersion(*workers[0].seal.remote(metadata, save))

    def write(self, workers, metadata, save, turn, on_wait):
        return workers[0].write.remote(metadata, save)

    def free_memory(self):
        pass


def parts(journal, group, artifacts, limits=None, **others):
    settings = CoordinatorConfig(stop_grace_s=20, max_attempts=3)
    return CallParts(journal, group, artifacts, settings, limits or TinkerConfig(), CallMetrics(CONFIG.name), **others)


@contextmanager
def running(journal, group, artifacts, limits=None, **others):
    """Run a runner of calls in the block, and yield it."""
    runner = CallRunner(CONFIG.name, parts(journal, group, artifacts, limits, **others))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        yield runner
    finally:
        runner.stop()
        thread.join(30)
        assert not thread.is_alive()
