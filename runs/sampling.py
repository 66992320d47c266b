"""Sampling fields of a task file, with the engine's own rules, so that a wrong one is reported before anything starts.

The rules are those of vLLM's ChatCompletionRequest and SamplingParams; test_sampling_rules.py in
tests/cluster/engine/requests compares both. Only the engine knows limits that depend on the model, like token ids
within its vocabulary.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, with_config
from typing_extensions import TypedDict

RESERVED_SAMPLING = ("model", "messages", "tools", "n", "stream", "stream_options", "logprobs", "request_id")
"""Fields that a rollout's requests set themselves."""
REFUSED = {
    **dict.fromkeys((*RESERVED_SAMPLING, "return_token_ids"), "every rollout's requests set it themselves"),
    **dict.fromkeys(("temperature", "max_tokens"), "use the field of that name beside sampling"),
    "max_completion_tokens": "use max_tokens beside sampling",
    "use_beam_search": "a beam search has no logprobs of sampled tokens, so nothing could be trained",
    "echo": "the prompt's words would become part of the answer",
    "return_tokens_as_token_ids": "the tokens' ids are returned in any case",
}
"""Fields that a task file can't set, and the reason."""

MAX_TEMPERATURE = 2.0
MAX_STOP_STRINGS = 4
MAX_LOGPROB_TOKEN_IDS = 128


def _not_reserved(sampling: Any) -> Any:
    if isinstance(sampling, dict) and (reserved := [name for name in sampling if name in REFUSED]):
        raise ValueError("; ".join(f"can't set {name}: {REFUSED[name]}" for name in reserved))
    return sampling


def _either_disabled_or(least: int) -> AfterValidator:
    def check(value: int | None) -> int | None:
        if value is not None and value != -1 and value < least:
            raise ValueError(f"must be -1 or at least {least}")
        return value

    return AfterValidator(check)


def _not_text(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("must be a whole number")
    return value


def _one_constraint(value: dict[str, Any] | None) -> dict[str, Any] | None:
    kinds = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
    if value is not None and sum(value.get(kind) is not None for kind in kinds) != 1:
        raise ValueError(f"needs exactly one of {', '.join(kinds)}")
    return value


Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Finite = Field(allow_inf_nan=False)
Penalty = Annotated[float, Field(ge=-2, le=2)]
NotEmpty = Annotated[str, Field(min_length=1)]
Object = dict[str, Any]


@with_config({"extra": "forbid"})
class SamplingFields(TypedDict, total=False):
    """Fields of a chat completion request that a task file may set; null means the default."""

    # The distribution
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    top_k: Annotated[Int64, _either_disabled_or(0)] | None
    min_p: Annotated[float, Field(ge=0, le=1)] | None
    presence_penalty: Penalty | None
    frequency_penalty: Penalty | None
    repetition_penalty: Annotated[float, Field(gt=0), Finite] | None
    logit_bias: dict[int, Annotated[float, Finite]] | None
    allowed_token_ids: Annotated[list[Int64], Field(min_length=1)] | None
    bad_words: list[NotEmpty]
    seed: Int64 | None

    # The end
    stop: NotEmpty | Annotated[list[NotEmpty], Field(max_length=MAX_STOP_STRINGS)] | None
    stop_token_ids: list[Int64] | None
    include_stop_str_in_output: bool
    ignore_eos: bool
    min_tokens: Annotated[Int64, Field(ge=0)]
    thinking_token_budget: Annotated[Int64, Field(strict=True), _either_disabled_or(0)] | None
    repetition_detection: Object | None

    # The answer's format
    response_format: Object | None
    structured_outputs: Annotated[Object | None, AfterValidator(_one_constraint)]
    tool_choice: Literal["none", "auto", "required"] | Object | None
    parallel_tool_calls: bool | None
    include_reasoning: bool
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
    skip_special_tokens: bool
    spaces_between_special_tokens: bool

    # The prompt
    add_generation_prompt: bool
    continue_final_message: bool
    add_special_tokens: bool
    documents: list[dict[str, str]] | None
    chat_template: str | None
    chat_template_kwargs: Object | None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1, le=2**63 - 1)] | None
    truncation_side: Literal["left", "right"] | None
    media_io_kwargs: dict[str, Object] | None
    mm_processor_kwargs: Object | None

    # What is returned beside it
    top_logprobs: Annotated[Int64, _either_disabled_or(0), BeforeValidator(_not_text)] | None
    prompt_logprobs: Annotated[Int64, _either_disabled_or(0), BeforeValidator(_not_text)] | None
    logprob_token_ids: Annotated[list[Int64], Field(max_length=MAX_LOGPROB_TOKEN_IDS)] | None
    routed_experts_prompt_start: Annotated[Int64, Field(ge=0)]
    return_prompt_text: bool | None

    # The request
    user: str | None
    session_id: str | None
    priority: Int64
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None
    kv_transfer_params: Object | None
    ec_transfer_params: Object | None
    vllm_xargs: dict[str, str | int | float | list[str | int | float]] | None
    watermarking: bool | None
    length_penalty: Annotated[float, Finite]
    stream_interval: Annotated[Int64, Field(ge=1)] | None


def check_min_tokens(sampling: SamplingFields, max_tokens: int | None) -> None:
    """Raise ValueError if a turn can't have min_tokens."""
    least = sampling.get("min_tokens", 0)
    if max_tokens is not None and least > max_tokens:
        raise ValueError(f"sampling.min_tokens is {least}, but max_tokens is {max_tokens}; lower the former")


def similar_field(name: Any) -> str:
    """Return a question for the name of a field that doesn't exist."""
    similar = get_close_matches(str(name)[:64], list(SamplingFields.__annotations__), n=1)
    return f"; did you mean {similar[0]}?" if similar else ""


Sampling = Annotated[SamplingFields, BeforeValidator(_not_reserved)]
