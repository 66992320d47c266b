"""Logprobs of a prompt's positions beyond what vLLM offers: of given token ids, and of tokens drawn there.

vLLM's answer has, for each position, the logprobs of the prompt's token and of the K likeliest. Requests that ask for
more get more columns in the same answer: `PromptColumns` says which, and `PromptScores` fills them in the worker.

Importing this module imports neither vLLM nor torch.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tandem.cluster.engine.samples.sample_request import SampleRequest

EXTRA = "tandem_prompt_scores"
"""The key in vLLM's `extra_args` of what the worker has to score."""


@dataclass(frozen=True)
class PromptColumns:
    """The columns of each position, after that of the prompt's token itself."""

    num_top: int
    num_targets: int
    num_alternatives: int

    @property
    def width(self) -> int:
        return self.num_top + self.num_targets + self.num_alternatives

    @property
    def top(self) -> slice:
        return slice(1, 1 + self.num_top)

    @property
    def targets(self) -> slice:
        return slice(self.top.stop, self.top.stop + self.num_targets)

    @property
    def alternatives(self) -> slice:
        return slice(self.targets.stop, self.targets.stop + self.num_alternatives)

    def options(self, request: SampleRequest) -> Mapping[str, Any]:
        """Return the arguments of vLLM's sampling parameters."""
        if self.width == self.num_top:
            return {"prompt_logprobs": self.num_top}
        seed = random.getrandbits(62) if request.seed is None else request.seed
        extra: dict[str, Any] = {
            "num_top": self.num_top,
            "num_alternatives": self.num_alternatives,
            "temperature": request.temperature,
            "seed": seed,
        }
        if request.targets is not None:
            extra |= {"targets": request.targets.ids.astype("<i8").tobytes(), "num_targets": self.num_targets}
        return {"prompt_logprobs": self.width, "extra_args": {EXTRA: extra}}


def columns_of(request: SampleRequest) -> PromptColumns | None:
    """Return what a request asks about its prompt; None for nothing."""
    num_targets = request.targets.width if request.targets else 0
    columns = PromptColumns(request.topk_prompt, num_targets, request.num_alternatives)
    return columns if request.prompt_logprobs or columns.width else None


class PromptScores:
    """In place of a method of vLLM's model runner (version 1): scores the prompts of a step.

    PromptScores.install(runner)
    """

    def __init__(self, runner: Any):
        self._runner, self._of_vllm = runner, runner._get_prompt_logprobs_dict

    @classmethod
    def install(cls, runner: Any) -> bool:
        """Return False for a model runner of another kind."""
        if not hasattr(runner, "_get_prompt_logprobs_dict"):
            return False
        runner._get_prompt_logprobs_dict = cls(runner)
        return True

    def __call__(self, hidden_states: Any, num_scheduled_tokens: dict[str, int]) -> dict[str, Any]:
        """Return the logprobs of each request whose prompt ends with this step, and keep those of the others.

        Args:
            hidden_states: of all tokens of the step.
            num_scheduled_tokens: the tokens of each request in it.
        """
        waiting = self._runner.num_prompt_logprobs
        own = {id: width for id, width in waiting.items() if self._extra(id) is not None}
        for id in own:
            del waiting[id]
        found: dict[str, Any] = self._of_vllm(hidden_states, num_scheduled_tokens)
        for id, width in own.items():
            scores = self._score(id, width, hidden_states, num_scheduled_tokens.get(id))
            if scores is None:
                waiting[id] = width
            else:
                found[id] = scores
        return found

    def _extra(self, id: str) -> dict[str, Any] | None:
        extra = self._runner.requests[id].sampling_params.extra_args
        return extra.get(EXTRA) if extra else None

    def _score(self, id: str, width: int, hidden_states: Any, num_tokens: int | None) -> Any | None:
        """Score the positions of one request in this step. Return all of them once the prompt ends, None before."""
        from vllm.v1.outputs import LogprobsTensors

        runner, request = self._runner, self._runner.requests[id]
        if num_tokens is None:  # it was preempted
            return None
        length, start = len(request.prompt_token_ids), request.num_computed_tokens
        kept = request.in_progress_prompt_logprobs_cpu
        if kept is None:
            kept = request.in_progress_prompt_logprobs_cpu = LogprobsTensors.empty_cpu(length - 1, width + 1)
        num = min(num_tokens, length - 1 - start)
        if num > 0:
            offset = int(runner.query_start_loc.np[runner.input_batch.req_id_to_index[id]])
            logits = runner.model.compute_logits(hidden_states[offset : offset + num])
            ids, logprobs = self._columns(self._extra(id) or {}, logits, request.prompt_token_ids, start)
            kept.logprob_token_ids[start : start + num] = ids.cpu()
            kept.logprobs[start : start + num] = logprobs.cpu()
            kept.selected_token_ranks[start : start + num] = 0
        if num_tokens <= length - 1 - start:
            return None
        request.in_progress_prompt_logprobs_cpu = None
        return kept

    def _columns(self, extra: dict[str, Any], logits: Any, prompt: list[int], start: int) -> tuple[Any, Any]:
        """Return ids and logprobs of some positions, [n, width + 1]. Row i is about prompt token start + i + 1."""
        import torch

        num = len(logits)
        logprobs = self._runner.sampler.compute_logprobs(logits)
        ids = [torch.tensor(prompt[start + 1 : start + 1 + num], device=logits.device)[:, None]]
        if extra["num_top"]:
            ids.append(logprobs.topk(extra["num_top"], dim=-1).indices)
        if "targets" in extra:
            targets = np.frombuffer(extra["targets"], "<i8").reshape(-1, extra["num_targets"])[start : start + num]
            ids.append(torch.tensor(targets, device=logits.device).clamp_min(0))
        if extra["num_alternatives"]:
            ids.append(_drawn(logprobs, extra["num_alternatives"], extra["temperature"], extra["seed"] + start))
        all_ids = torch.cat(ids, dim=1)
        return all_ids, logprobs.gather(1, all_ids)


def _drawn(logprobs: Any, num: int, temperature: float, seed: int) -> Any:
    """Draw `num` token ids for each row, with replacement. The draws of a row depend on seed + row alone."""
    import torch

    if temperature == 0:
        return logprobs.argmax(dim=-1, keepdim=True).expand(-1, num)
    generator = torch.Generator(device=logprobs.device)
    rows = []
    for row, weights in enumerate((logprobs / temperature).softmax(dim=-1)):
        generator.manual_seed(seed + row)
        rows.append(weights.multinomial(num, replacement=True, generator=generator))
    return torch.stack(rows)
