"""Batches in which some requests ask for the logprobs of given tokens, and others for those of the likeliest.

vLLM's sampler then answers all of them with the former's columns: whoever asked for the likeliest gets rows that are
too short. Scoring, also of a version's probe, asks for given tokens at any time.

Importing this module imports neither vLLM nor torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class MixedLogprobs:
    """In place of a function of vLLM's sampler (version 1): adds the likeliest tokens of the other requests.

    MixedLogprobs.install(runner)
    """

    def __init__(self, runner: Any):
        self._runner, self._of_vllm = runner, runner.sampler.gather_specific_token_logprobs

    @classmethod
    def install(cls, runner: Any) -> None:
        """Do nothing for a model runner of another kind, which keeps such requests apart."""
        if hasattr(getattr(runner, "sampler", None), "gather_specific_token_logprobs"):
            runner.sampler.gather_specific_token_logprobs = cls(runner)

    def __call__(self, logprobs: Any, ids_of_rows: Mapping[int, Sequence[int]], sampled: Any) -> Any:
        """Return ids and logprobs of each request.

        Args:
            logprobs: [B, V] of all requests.
            ids_of_rows: the given tokens, by the row of the request that asks for them.
            sampled: [B] token ids, which are the first column.
        """
        from vllm.v1.outputs import LogprobsTensors

        found = self._of_vllm(logprobs, ids_of_rows, sampled)
        num_top = self._runner.input_batch.max_num_logprobs or 0
        others = [row for row in range(len(logprobs)) if row not in ids_of_rows]
        if num_top <= 0 or not others:
            return found
        own_ids, own_logprobs, ranks, *_ = found
        width = max(num_top + 1, own_ids.shape[1])
        ids = own_ids.new_zeros(len(logprobs), width)
        values = own_logprobs.new_full((len(logprobs), width), float("-inf"))
        ids[:, : own_ids.shape[1]], values[:, : own_ids.shape[1]] = own_ids, own_logprobs
        top = logprobs[others].topk(num_top, dim=-1)
        ids[others, 1 : num_top + 1] = top.indices.to(ids.dtype)
        values[others, 1 : num_top + 1] = top.values
        return LogprobsTensors(ids, values, ranks)
