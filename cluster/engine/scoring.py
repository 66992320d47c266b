"""Logprobs of given tokens from vLLM.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from tandem.cluster.engine.core.engine_core import EngineCore
from tandem.cluster.engine.core.last_words import last_error
from tandem.cluster.engine.versions.adapter_names import adapter_digest
from tandem.cluster.errors import EngineDeadError, VersionNotFiniteError


async def score_one(core: EngineCore, tokens: Sequence[int], lora: Any, priority: int) -> list[float]:
    """Return the logprob of each token given those before it; NaN for the first.

    All tokens but the last are the prompt, and the last is the generated token, whichever is sampled. So max_model_len
    tokens can be scored, although vLLM must generate one token after a prompt.

    Args:
        lora: vLLM's request for the adapter.
        priority: vLLM runs lower numbers first; chat has 0.

    Raises VersionNotFiniteError and EngineDeadError.
    """
    from vllm import SamplingParams
    from vllm.exceptions import VLLMUnprocessableEntityError
    from vllm.inputs.engine import tokens_input
    from vllm.logprobs import FlatLogprobs
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

    *prompt, last = tokens
    if not prompt:
        return [math.nan]
    params = SamplingParams(
        max_tokens=1,
        prompt_logprobs=0,
        logprob_token_ids=[last],
        detokenize=False,
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    outputs = core.llm.generate(
        tokens_input(prompt), params, f"score-{uuid.uuid4().hex}", lora_request=lora, priority=priority
    )
    try:
        (output,) = [output async for output in outputs]
    except CoreDeadError as error:
        died = f"The vLLM engine core of {core.served_name} died while scoring.{last_error()}"
        raise EngineDeadError(died) from error
    except VLLMUnprocessableEntityError as error:
        digest = adapter_digest(lora.lora_name)
        raise VersionNotFiniteError(digest, "its logits on the scored tokens aren't finite") from error
    # One entry per prompt token but the first; then the sampled token and the requested one.
    of_prompt, of_next = output.prompt_logprobs, output.outputs[0].logprobs
    assert isinstance(of_prompt, FlatLogprobs) and isinstance(of_next, FlatLogprobs)
    logprobs = [math.nan, *of_prompt.logprobs, of_next.logprobs[-1]]
    assert len(logprobs) == len(tokens), f"{len(logprobs)} logprobs for {len(tokens)} tokens"
    return logprobs
