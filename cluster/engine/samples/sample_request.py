"""A request for samples, checked against the limits of the engine that computes it.

Shapes: P prompt tokens, K token ids per position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tandem.cluster.engine.samples.prompt_targets import PromptTargets, read_targets
from tandem.cluster.engine.samples.sample_body import SampleBody, SampleError, SamplingParams

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
"""vLLM raises lower temperatures without a word, and refuses higher ones. Zero is greedy."""
MAX_SEED = 1 << 62
MAX_STOPS, MAX_STOP_LENGTH = 64, 1000
MAX_CELLS = 1 << 21
"""Logprobs of one answer beside those of the tokens themselves: P * K."""


@dataclass(frozen=True)
class EngineLimits:
    context: int
    """Tokens of prompt and completion together."""
    vocab_size: int
    max_logprobs: int
    """Logprobs of one position."""
    max_samples: int
    """Samples of one request."""


@dataclass(frozen=True)
class SampleRequest:
    """Fields as in the body. All of them have been checked."""

    prompt: list[int]
    num_samples: int
    max_tokens: int | None
    temperature: float
    top_k: int
    """0: no limit."""
    top_p: float
    seed: int | None
    stop_texts: list[str]
    stop_ids: list[int]
    ignores_eos: bool
    prompt_logprobs: bool
    last_n: int | None
    topk_prompt: int
    topk_sample: int
    targets: PromptTargets | None
    num_alternatives: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @classmethod
    def of(cls, body: SampleBody, limits: EngineLimits) -> SampleRequest:
        """Check a body. Raises SampleError."""
        prompt = _prompt(body, limits)
        options = body.sampling_params
        _check_options(options)
        texts, ids = _stops(options, limits)
        _check_range("num_samples", body.num_samples, 1, limits.max_samples)
        for name in ("base_model", "model_path"):
            if getattr(body, name) is not None:
                raise SampleError(f"{name}: the sampling session names the model. Leave it out.")
        if body.record_stability_info:
            raise SampleError(
                "record_stability_info isn't supported: it serves the loss stable_reinforce, which isn't published. "
                "Leave it out, and train with importance_sampling, ppo or cispo."
            )
        _check_logprobs(body, len(prompt), limits)
        targets = None
        if body.target_prompt_logprobs is not None:
            targets = read_targets(body.target_prompt_logprobs, len(prompt), limits.vocab_size)
            _check_width("target_prompt_logprobs", targets.width, len(prompt), limits)
        width = body.topk_prompt_logprobs + body.prompt_alt_tokens_k + (targets.width if targets else 0)
        _check_width(
            "topk_prompt_logprobs, target_prompt_logprobs and prompt_alt_tokens_k together", width, len(prompt), limits
        )
        return cls(
            prompt=prompt,
            num_samples=body.num_samples,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_k=max(options.top_k, 0),
            top_p=options.top_p,
            seed=options.seed,
            stop_texts=texts,
            stop_ids=ids,
            ignores_eos=options.stop == [],
            prompt_logprobs=bool(body.prompt_logprobs),
            last_n=body.prompt_logprobs_last_n,
            topk_prompt=body.topk_prompt_logprobs,
            topk_sample=body.topk_sample_logprobs,
            targets=targets,
            num_alternatives=body.prompt_alt_tokens_k,
        )


def _prompt(body: SampleBody, limits: EngineLimits) -> list[int]:
    prompt = [token for chunk in body.prompt.chunks for token in chunk.tokens]
    if not 1 <= len(prompt) < limits.context:
        raise SampleError(
            f"prompt has {len(prompt)} tokens; it must have 1 to {limits.context - 1}, so that one more token fits "
            f"the context of {limits.context}."
        )
    _check_ids("prompt", prompt, limits)
    return prompt


def _check_options(options: SamplingParams) -> None:
    place = "sampling_params"
    if options.max_tokens is not None:
        _check_range(f"{place}.max_tokens", options.max_tokens, 1, None)
    if options.temperature != 0 and not MIN_TEMPERATURE <= options.temperature <= MAX_TEMPERATURE:
        raise SampleError(
            f"{place}.temperature is {options.temperature:g}; it must be 0 (greedy) or {MIN_TEMPERATURE:g} to "
            f"{MAX_TEMPERATURE:g}."
        )
    if not 0 < options.top_p <= 1:
        raise SampleError(f"{place}.top_p is {options.top_p:g}; it must be above 0 and at most 1.")
    _check_range(f"{place}.top_k", options.top_k, -1, (1 << 31) - 1)
    if options.seed is not None:
        _check_range(f"{place}.seed", options.seed, 0, MAX_SEED)


def _stops(options: SamplingParams, limits: EngineLimits) -> tuple[list[str], list[int]]:
    place = "sampling_params.stop"
    stops: list[Any] = [options.stop] if isinstance(options.stop, str) else list(options.stop or ())
    if len(stops) > MAX_STOPS:
        raise SampleError(f"{place} has {len(stops)} entries, more than {MAX_STOPS}.")
    ids = [stop for stop in stops if not isinstance(stop, str)]
    _check_ids(place, ids, limits)
    texts = [stop for stop in stops if isinstance(stop, str)]
    if not all(1 <= len(text) <= MAX_STOP_LENGTH for text in texts):
        raise SampleError(f"{place} has an empty text, or one of more than {MAX_STOP_LENGTH} characters.")
    return texts, ids


def _check_logprobs(body: SampleBody, length: int, limits: EngineLimits) -> None:
    for name in ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k"):
        _check_width(name, getattr(body, name), length, limits)
    if body.prompt_logprobs_last_n is not None:
        if not body.prompt_logprobs:
            raise SampleError("prompt_logprobs_last_n needs prompt_logprobs.")
        _check_range("prompt_logprobs_last_n", body.prompt_logprobs_last_n, 1, length - 1)


def _check_width(name: str, width: int, length: int, limits: EngineLimits) -> None:
    _check_range(name, width, 0, limits.max_logprobs)
    if width * length > MAX_CELLS:
        raise SampleError(f"{name} asks for {width} logprobs at {length} positions, more than {MAX_CELLS} in all.")


def _check_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"{low} to {high}"
        raise SampleError(f"{name} is {value}; it must be {bounds}.")


def _check_ids(name: str, ids: Sequence[int], limits: EngineLimits) -> None:
    if ids and not 0 <= min(ids) <= max(ids) < limits.vocab_size:
        raise SampleError(f"{name} has a token id outside the vocabulary of {limits.vocab_size} tokens.")
