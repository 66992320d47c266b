"""The generations of a request, as they leave the engine: exact for every protocol, whatever is made of the text.

vLLM's layers for Responses and Messages return neither token ids nor logprobs. Importing this module imports no vLLM.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

# Replaces NaN and infinite logprobs, which JSON can't hold; vLLM uses it for minus infinity too.
NOT_FINITE_LOGPROB = -9999.0


@dataclass
class Generation:
    """One prompt and the tokens that were sampled after it, with stop tokens and the tokens of stop sequences."""

    prompt_token_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def add(self, output: RequestOutput) -> None:
        """Append the new tokens of an output that isn't cumulative."""
        if not self.prompt_token_ids:
            self.prompt_token_ids = list(output.prompt_token_ids or ())
        for completion in output.outputs:
            assert completion.index == 0  # these protocols have no `n`
            assert completion.logprobs is not None
            for token, of_token in zip(completion.token_ids, completion.logprobs, strict=True):
                assert of_token is not None
                self.token_ids.append(token)
                self.logprobs.append(_finite(of_token[token].logprob))


RECORDED: ContextVar[list[Generation]] = ContextVar("recorded")
"""The generations of the request that this task answers."""


class RecordingClient:
    """An engine client of vLLM that adds each generation to RECORDED. Everything else is the client's."""

    def __init__(self, client: Any):
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """Yield the client's outputs, with the logprob of each sampled token."""
        if sampling_params.logprobs is None:
            sampling_params = sampling_params.clone()  # the answer quotes the caller's
            sampling_params.logprobs = 0
        generation = Generation()
        RECORDED.get().append(generation)
        async with aclosing(self._client.generate(prompt, sampling_params, request_id, **options)) as outputs:
            async for output in outputs:
                generation.add(output)
                yield output


def _finite(logprob: float) -> float:
    return logprob if NOT_FINITE_LOGPROB < logprob < math.inf else NOT_FINITE_LOGPROB  # NaN is never greater
