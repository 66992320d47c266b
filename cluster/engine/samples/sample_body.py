"""The JSON body of a request for samples, as a client of the Tinker API writes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from tandem.cluster.errors import ClusterError

INT64 = (1 << 63) - 1


class SampleError(ClusterError, ValueError):
    """The request can't be sampled as it is: the user's error. The message names the field."""


class _Wire(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=(), allow_inf_nan=False)


def _of_text(chunk: Any) -> Any:
    kind = chunk.get("type", "encoded_text") if isinstance(chunk, dict) else "encoded_text"
    if kind != "encoded_text":
        raise ValueError(f"is a chunk of type {str(kind)[:40]!r}; engines here read encoded_text alone")
    return chunk


class TextChunk(_Wire):
    type: Literal["encoded_text"] = "encoded_text"
    tokens: list[int]


class ModelInput(_Wire):
    chunks: list[Annotated[TextChunk, BeforeValidator(_of_text)]]


class SamplingParams(_Wire):
    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class TensorBody(_Wire):
    """A tensor of numbers: dense, or with the rows of a sparse matrix (CSR)."""

    data: list[int] | list[float]
    dtype: Literal["int64", "float32"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class SampleBody(_Wire):
    type: Literal["sample"] = "sample"
    sampling_session_id: Annotated[str, Field(min_length=1, max_length=500)]
    seq_id: Annotated[int, Field(ge=0, le=INT64)]
    num_samples: int = 1
    prompt: ModelInput
    sampling_params: SamplingParams
    base_model: str | None = None
    model_path: str | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: TensorBody | None = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None


def read_body(content: bytes) -> SampleBody:
    """Return the body. Raises SampleError with the place and the reason of the first fault."""
    try:
        return SampleBody.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "body"
        if first["type"] == "extra_forbidden":
            raise SampleError(f"{place[:200]} isn't a field that this service supports here. Leave it out.") from None
        reason = str(first["msg"]).removeprefix("Value error, ").replace("Input should", "must")
        if first["type"] == "missing":
            reason = "is missing"
        raise SampleError(f"{place[:200]}: {reason[:300]}") from None
