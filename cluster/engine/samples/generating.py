"""Samples and logprobs of prompts from vLLM, as arrays.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from tandem.cluster.engine.metrics.usage import watching_prefill
from tandem.cluster.engine.samples.futures import HandedBackError
from tandem.cluster.engine.samples.prompt_scores import PromptColumns, columns_of
from tandem.cluster.engine.samples.sample_request import SampleRequest
from tandem.cluster.engine.samples.sampled import NO_LOGPROB, Floats, Sampled, SampledTokens, TopTokens

if TYPE_CHECKING:
    from vllm.logprobs import FlatLogprobs
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM


Part = tuple[int, int, PromptColumns | None]
"""How many samples, the number of the first, and what is computed for their prompt."""


async def generate(llm: AsyncLLM, request: SampleRequest, lora: Any, id: str) -> Sampled:
    """Return the samples of a request under an adapter. Cancelling it aborts them.

    What is asked about the prompt is computed once, with the first sample; the others share its prefix. Greedy samples
    are all equal, so one is computed.

    Args:
        lora: vLLM's request for the adapter.
        id: names the generation in vLLM's log.

    Raises vLLM's errors.
    """
    columns = columns_of(request)
    num = 1 if request.is_greedy else request.num_samples
    parts: list[Part] = [(num, 0, None)]
    if columns is not None:
        parts = [(1, 0, columns), *([(num - 1, 1, None)] if num > 1 else [])]
    outputs = await _gather(llm, request, lora, id, parts)
    sequences = [_sequence(own, request.topk_sample) for output, _ in outputs for own in output.outputs]
    if request.is_greedy:
        sequences *= request.num_samples
    first, num_cached = outputs[0]
    if columns is None:
        return Sampled(sequences, num_cached)
    return _with_prompt(Sampled(sequences, num_cached), first, request, columns)


async def _gather(
    llm: AsyncLLM, request: SampleRequest, lora: Any, id: str, parts: list[Part]
) -> list[tuple[RequestOutput, int]]:
    tasks = [asyncio.create_task(_one(llm, request, lora, f"{id}-{part[1]}", part)) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _one(llm: AsyncLLM, request: SampleRequest, lora: Any, id: str, part: Part) -> tuple[RequestOutput, int]:
    """Return vLLM's output, and how many tokens of the prompt were cached."""
    from vllm.inputs.engine import tokens_input

    with watching_prefill() as prefill:
        outputs = llm.generate(tokens_input(request.prompt), _parameters(request, *part), id, lora_request=lora)
        (output,) = [output async for output in outputs]
    return output, prefill.num_cached


def _parameters(request: SampleRequest, num: int, first: int, columns: PromptColumns | None) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    of_prompt: Mapping[str, Any] = {} if columns is None else columns.options(request)
    return SamplingParams(
        n=num,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        seed=None if request.seed is None else request.seed + first,
        stop=request.stop_texts,
        stop_token_ids=request.stop_ids,
        ignore_eos=request.ignores_eos,
        max_tokens=request.max_tokens,
        logprobs=request.topk_sample,
        detokenize=bool(request.stop_texts),
        skip_special_tokens=False,  # a text that ends the generation may be that of a special token
        include_stop_str_in_output=True,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        **of_prompt,
    )


def _sequence(output: CompletionOutput, topk: int) -> SampledTokens:
    flat: Any = output.logprobs
    if output.finish_reason not in ("stop", "length"):
        raise HandedBackError(f"vLLM ended the generation with {output.finish_reason!r}")
    tokens = np.asarray(output.token_ids, np.int32)
    logprobs, ids = _matrix(flat, len(tokens), topk + 1)
    top = TopTokens(ids[:, 1:], logprobs[:, 1:]) if topk else None
    return SampledTokens(tokens, logprobs[:, 0], top, is_stopped=output.finish_reason == "stop")


def _with_prompt(sampled: Sampled, output: RequestOutput, request: SampleRequest, columns: PromptColumns) -> Sampled:
    """Add what was asked about the prompt."""
    length = len(request.prompt)
    scored, ids = _matrix(output.prompt_logprobs, length - 1, columns.width + 1, start=1)
    skipped = length - request.last_n if request.last_n else 1
    prompt_logprobs = prompt_top = targets = alternatives = None
    if request.prompt_logprobs:
        prompt_logprobs = np.concatenate([np.full(1, math.nan, np.float32), scored[:, 0]])
        prompt_logprobs[:skipped] = math.nan
    if request.topk_prompt:
        rows = columns.top
        first = np.zeros((1, request.topk_prompt))
        top = TopTokens(
            np.concatenate([first.astype(np.int32), ids[:, rows]]),
            np.concatenate([np.full_like(first, NO_LOGPROB, np.float32), scored[:, rows]]),
        )
        prompt_top = top.after(skipped)
    if request.targets is not None:
        targets = (request.targets, scored[:, columns.targets])
    if request.num_alternatives:
        alternatives = TopTokens(ids[:, columns.alternatives], scored[:, columns.alternatives])
    return Sampled(sampled.sequences, sampled.num_cached, prompt_logprobs, prompt_top, targets, alternatives)


def _matrix(flat: FlatLogprobs | Any, length: int, width: int, start: int = 0) -> tuple[Floats, Any]:
    """Return logprobs and token ids of `length` positions from `start`, float32 and int32 [length, width]."""
    assert len(flat.start_indices) >= start + length, f"{len(flat.start_indices)} positions of {start + length}"
    if not length:
        return np.zeros((0, width), np.float32), np.zeros((0, width), np.int32)
    begin, end = flat.start_indices[start], flat.end_indices[start + length - 1]
    assert end - begin == length * width, f"{end - begin} logprobs for {length} positions of {width}"
    logprobs = np.asarray(flat.logprobs[begin:end], np.float32).reshape(length, width)
    return logprobs, np.asarray(flat.token_ids[begin:end], np.int32).reshape(length, width)
