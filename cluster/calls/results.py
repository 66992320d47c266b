"""Answers of calls as the client reads them."""

from __future__ import annotations

import json
import math

from tandem.cluster.calls.call import JSON, PROTOBUF, CallResult, CallUsage, ClaimedRun, RunCall
from tandem.cluster.learners.run_training import CallOutput


def output_result(output: CallOutput, usage: CallUsage) -> CallResult:
    """Return the answer of forward_backward and forward.

    Metrics are sums, which the client adds up where it has split a call.
    """
    import torch

    from tandem.cluster.calls.wire.forward_backward import forward_backward_output

    logprobs = [torch.from_numpy(own if own.flags.writeable else own.copy()) for own in output.logprobs]  # as Ray's are
    metrics = {f"{name}:sum": value for name, value in output.sums.items()}
    return CallResult(forward_backward_output(logprobs, metrics), PROTOBUF, usage)


def step_result(metrics: dict[str, float], usage: CallUsage) -> CallResult:
    """Return the answer of optim_step."""
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return CallResult(json.dumps({"metrics": finite}).encode(), JSON, usage)


def load_result(run: ClaimedRun, call: RunCall) -> CallResult:
    """Return the answer of load_weights."""
    answer = {"type": "load_weights", "model_id": run.id, "path": call.options.get("path")}
    return CallResult(json.dumps({name: value for name, value in answer.items() if value is not None}).encode())
