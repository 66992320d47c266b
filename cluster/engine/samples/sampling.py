"""Samples of an engine under any policy version: loaded when needed, tried again while it can't be."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from tandem.cluster.engine.core.engine_core import EngineCore
from tandem.cluster.engine.samples.futures import HandedBackError, Progress
from tandem.cluster.engine.samples.generating import generate
from tandem.cluster.engine.samples.sample_body import SampleBody, SampleError
from tandem.cluster.engine.samples.sample_request import EngineLimits, SampleRequest
from tandem.cluster.engine.sleep import EngineSleep
from tandem.cluster.engine.versions.adapter_names import adapter_name
from tandem.cluster.engine.versions.adapter_pool import AdapterPool
from tandem.cluster.engine.versions.finiteness import NotFiniteVersions
from tandem.cluster.errors import (
    AdapterUnavailableError,
    ArtifactError,
    EngineAsleepError,
    EngineDeadError,
    VersionNotFiniteError,
    WrongVersionError,
)

logger = logging.getLogger(__name__)
LOAD_PAUSES_S = (1.0, 5.0, 15.0)
"""Before each further try to load a version."""
NOT_FINITE = (
    "The logits of this policy version aren't finite: its weights have diverged. A learning rate that is too high is "
    "the usual cause. Sample an earlier checkpoint."
)


class EngineSampling:
    """Computes samples with an engine that has started."""

    def __init__(
        self,
        core: EngineCore,
        models: Any,
        adapters: AdapterPool,
        sleep: EngineSleep,
        not_finite: NotFiniteVersions,
        max_samples: int,
        scores_prompts: bool,
    ):
        """`models` is vLLM's table of adapters. `scores_prompts`: the worker can fill the columns of `PromptScores`."""
        self._core, self._models, self._adapters = core, models, adapters
        self._sleep, self._not_finite, self._scores_prompts = sleep, not_finite, scores_prompts
        config = core.llm.model_config
        self._limits = EngineLimits(
            context=config.max_model_len,
            vocab_size=config.get_vocab_size(),
            max_logprobs=config.max_logprobs,
            max_samples=max_samples,
        )

    def checked(self, body: SampleBody) -> SampleRequest:
        """Return the request of a body. Raises SampleError."""
        request = SampleRequest.of(body, self._limits)
        if not self._scores_prompts and (request.targets or request.num_alternatives):
            name = "target_prompt_logprobs" if request.targets else "prompt_alt_tokens_k"
            raise SampleError(f"{name} isn't supported by vLLM's model runner of this engine. Leave it out.")
        return request

    async def sample(self, request: SampleRequest, digest: str, id: str, progress: Progress) -> bytes:
        """Return the protobuf message with the samples of a policy version.

        Raises SampleError, also for a version that doesn't exist or isn't finite, and HandedBackError.
        """
        from vllm.exceptions import VLLMUnprocessableEntityError, VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError as CoreDeadError

        try:
            for pause_s in (*LOAD_PAUSES_S, None):
                try:
                    return await self._sample(request, digest, id, progress)
                except VersionNotFiniteError:
                    raise
                except AdapterUnavailableError as error:
                    if isinstance(error.__cause__, ArtifactError):
                        raise SampleError("The weights of this sampler don't exist any more.") from error
                    if pause_s is None or isinstance(error, WrongVersionError):
                        raise
                    logger.warning("%s; it is tried again", error)
                    progress.reason = "The weights of this sampler couldn't be loaded yet; the engine tries again"
                    await asyncio.sleep(pause_s)
        except (VersionNotFiniteError, VLLMUnprocessableEntityError) as error:
            raise SampleError(NOT_FINITE) from error
        except VLLMValidationError as error:  # our own checks are meant to find it first
            raise SampleError(str(error)[:500]) from error
        except (EngineDeadError, CoreDeadError) as error:
            raise HandedBackError(f"the engine's core died: {error}") from error
        raise AssertionError("every try returns or raises")

    async def _sample(self, request: SampleRequest, digest: str, id: str, progress: Progress) -> bytes:
        self._core.check_health()
        self._not_finite.check(digest)
        while True:
            progress.is_paused = self._sleep.is_leased
            progress.reason = "Learners use the memory of this engine; it samples again after them"
            try:
                async with self._sleep.awake():
                    progress.is_paused, progress.reason = False, "The engine loads the weights of this sampler"
                    async with self._adapters.use(digest):
                        progress.reason = None
                        lora = self._models.lora_requests[adapter_name(digest)]
                        sampled = await generate(self._core.llm, request, lora, id)
                return sampled.to_protobuf()
            except EngineAsleepError:
                continue  # nobody waits for a deadline but the client, whose polls keep the sample
