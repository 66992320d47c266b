"""Answers calls of runs like a coordinator does, with numbers that follow from the calls instead of a model."""

import hashlib
import json
import threading

import torch

from tandem.cluster.calls.call import JSON, PROTOBUF, Anchor, CallResult, SavedState
from tandem.cluster.calls.wire.forward_backward import forward_backward_output, read_forward_backward
from tandem.cluster.errors import LeaseLostError


class Executor:
    """Executes whatever waits, from `start` to `stop`, in a thread."""

    def __init__(self, claims, artifacts, base_model):
        self._claims, self._artifacts, self._base_model = claims, artifacts, base_model
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.executed = []
        """(run, seq, kind, loss and options, or options)"""

    def start(self):
        self._thread.start()

    def stop(self):
        self._stopping.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self):
        while not self._stopping.wait(0.002):
            while self.step():
                pass

    def step(self):
        """Execute the calls of one run that wait. Return whether there was one."""
        run = self._claims.claim_run(self._base_model, "executor", 30)
        if run is None:
            return False
        try:
            while calls := [call for call in self._claims.next_calls(run) if call.outcome is None]:
                for call in calls:
                    self._claims.answer(run, call, self._result(run, call))
        except LeaseLostError:
            return True
        self._claims.release(run)
        return True

    def _result(self, run, call):
        if call.kind in ("forward_backward", "forward"):
            sent = read_forward_backward(self._artifacts.read_blob(call.body_key))
            self.executed.append((run.id, call.seq, call.kind, sent.call.loss, dict(sent.call.options)))
            logprobs = [torch.full(datum.targets.shape, -float(call.seq)) for datum in sent.call.datums]
            metrics = {"loss:sum": float(sum(datum.num_tokens for datum in sent.call.datums))}
            return CallResult(forward_backward_output(logprobs, metrics), PROTOBUF)
        self.executed.append((run.id, call.seq, call.kind, dict(call.options)))
        if call.kind == "optim_step":
            return CallResult(json.dumps({"metrics": {"lr": call.options["learning_rate"]}}).encode(), JSON)
        if call.kind == "load_weights":
            result = {"path": call.options["path"], "model_id": run.id, "type": "load_weights"}
            anchor = Anchor(call.options["digest"], call.seq, call.options["optimizer"])
            return CallResult(json.dumps(result).encode(), JSON, anchor=anchor)
        digest = hashlib.sha256(f"{run.id}/{call.seq}".encode()).hexdigest()
        saved = SavedState(digest, 1000, is_anchor=True, has_optimizer=True)
        return CallResult(saved=saved, anchor=Anchor(digest, call.seq, has_optimizer=True))
