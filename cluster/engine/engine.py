"""The vLLM engine of a base model: OpenAI requests and scoring under any policy version, loaded on demand.

Importing this module imports neither vLLM nor torch. vLLM reads its environment variables at import, so the process of
an Engine must be started with `engine_environment`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.config import DeadlinesConfig, EngineConfig
from tandem.cluster.engine.adapter_pool import AdapterPool
from tandem.cluster.engine.core import EngineCore
from tandem.cluster.engine.finiteness import FiniteOutputs, NotFiniteVersions, check_weights
from tandem.cluster.engine.openai_app import (
    ASGIApp,
    Message,
    Receive,
    ResponseStart,
    Scope,
    Send,
    build_openai_app,
    call_app,
    error_app,
    parse_arguments,
)
from tandem.cluster.engine.refusals import name_places_of_invalid_fields, with_places
from tandem.cluster.engine.request_checks import BadRequestError, policy_request
from tandem.cluster.engine.settings import EngineDevice, engine_arguments, engine_environment
from tandem.cluster.engine.version_checks import VersionChecks, VersionReport
from tandem.cluster.errors import (
    AdapterUnavailableError,
    ArtifactError,
    EngineDeadError,
    VersionNotFiniteError,
    WrongVersionError,
)
from tandem.cluster.processes.heap import freeze_heap
from tandem.rl.probe import probe_token_ids
from tandem.rl.settings import LoraSettings
from tandem.rl.version_probe import Verdict, VersionProbe

__all__ = ["Engine", "EngineLoad", "adapter_name", "engine_environment"]

logger = logging.getLogger(__name__)

# vLLM's other routes change the shared engine.
ROUTES = frozenset({("POST", "/v1/chat/completions"), ("POST", "/v1/completions")})
SCORING_PRIORITY, PROBE_PRIORITY = 100, -1  # vLLM runs lower numbers first; chat has 0
RETIRED_ADAPTER_S = 60.0


class EngineLoad(TypedDict):
    num_unfinished: int
    """Requests that vLLM has accepted and not finished."""
    adapters: list[str]
    """Digests of the loaded policy versions, the least recently used first."""


class Engine:
    """One replica of vLLM, its core in a process of its own, serving every policy version of a base model.

        engine = Engine(config, model_path, "my-model", artifacts.pull_adapter, max_model_len, lora)
        await engine.start()
        async for item in engine.http("POST", "/v1/chat/completions", headers, body, digest): ...
        logprobs = await engine.score(sequences, digest)

    A policy version is a LoRA adapter named by its digest. Every request runs on one; that of version 0 is zero. A
    version is fetched and loaded on demand. Beyond `config.max_cpu_loras`, the least recently used ones are unloaded.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_path: str,
        served_name: str,
        fetch: Callable[[str], Path],
        max_model_len: int | None,
        lora: LoraSettings,
        answer_s: float = DeadlinesConfig().engine_answer_s,
    ):
        """Prepare an engine; `start` starts it.

        Args:
            fetch: returns a local directory with a version's adapter, or raises ArtifactError; may block.
            answer_s: a core that doesn't answer for this long is killed.
        """
        self._config, self._model_path, self._served_name = config, model_path, served_name
        self._fetch, self._max_model_len, self._lora = fetch, max_model_len, lora
        self._core, self._answer_s = EngineCore(served_name, answer_s), answer_s
        self._adapters = AdapterPool(self._load_adapter, self._unload_adapter, config.max_cpu_loras)
        self._not_finite = NotFiniteVersions()
        self._checks = VersionChecks()
        self._directory: tempfile.TemporaryDirectory[str]
        self._app: ASGIApp
        self._models: Any  # vLLM's table of adapters by name

    async def start(self, timeout_s: float = 600) -> None:
        """Load the base model and start the engine core. Raises EngineDeadError, also after `timeout_s`."""
        if not self._config.num_gpus:
            self._core.preload()
        from vllm.platforms import current_platform

        device: EngineDevice = "cpu" if current_platform.is_cpu() else "cuda"
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-engine-")
        try:
            args = parse_arguments(
                engine_arguments(
                    self._config, self._model_path, self._served_name, self._max_model_len, self._lora, device
                )
            )
            await self._core.start(args, timeout_s)
            if device == "cpu":
                for method in ("fix_cpu_lora", "close_lone_groups"):
                    await self._core.unless_dead(self._core.llm.collective_rpc(method, timeout=self._answer_s))
            app = await build_openai_app(self._core.llm, args)
            name_places_of_invalid_fields(app)
        except Exception as error:
            await self.stop()
            raise EngineDeadError(
                f"The vLLM engine of {self._served_name} didn't start: {error} (See the log of its process.)"
            ) from error
        self._app, self._models = app, app.state.openai_serving_models
        FiniteOutputs(self._core.llm.output_processor, self._see_not_finite).install()
        self._core.watch()
        freeze_heap()

    async def stop(self) -> None:
        """End the engine core and remove this engine's files."""
        await self._core.stop()
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    async def check_health(self) -> None:
        """Raise EngineDeadError if the engine core died or was killed. This engine must then be replaced."""
        self._core.check_health()

    def not_finite(self) -> list[str]:
        """Return the digests of versions that lately got no completion because their logits aren't finite."""
        return self._not_finite.recent()

    def load(self) -> EngineLoad:
        return {"num_unfinished": self._core.llm.get_num_unfinished_requests(), "adapters": self._adapters.digests}

    async def http(
        self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes, digest: str
    ) -> AsyncGenerator[ResponseStart | bytes]:
        """Answer an OpenAI request under a policy version: yield (status, headers), then the chunks of the body.

        The body's `model` is replaced by the version's name. Errors have OpenAI's format: 400 with the place for a bad
        request, 404 for a missing version, 422 for one whose logits aren't finite, 503 for a version that can't be
        loaded now or a dead engine. Closing the generator early ends the generation.
        """
        app: ASGIApp = partial(self._serve, digest)
        if (method, path) not in ROUTES:
            app = error_app(404, "NotFoundError", f"The engine has no route {method} {path}.")
        else:
            try:
                request = policy_request(body, adapter_name(digest))
                body = json.dumps(request, ensure_ascii=False).encode()
                app = with_places(app, path, request)
            except BadRequestError as error:
                app = error_app(400, "BadRequestError", str(error), error.param)
        async with aclosing(call_app(app, method, path, headers, body)) as items:
            async for item in items:
                yield item

    async def _serve(self, digest: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Run vLLM's ASGI application with the adapter loaded until it ends, even if the client disconnects."""

        async def send_unless_dead(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                self._core.check_health()
            await send(message)

        try:
            self._core.check_health()
            self._not_finite.check(digest)
            async with self._adapters.use(digest):
                await self._app(scope, receive, send_unless_dead)
        except EngineDeadError as error:
            app = error_app(503, "ServiceUnavailableError", f"{error} It is being replaced; retry later.")
            await app(scope, receive, send)
        except VersionNotFiniteError:
            # A status that clients don't retry: weights never change.
            message = f"The logits of {adapter_name(digest)} aren't finite: its weights have diverged. {_REMEDY}"
            app = error_app(422, "UnprocessableEntityError", message, "model")
            await app(scope, receive, send)
        except AdapterUnavailableError as error:
            logger.warning("%s", error)  # not for the client: it may name paths
            if isinstance(error, WrongVersionError):
                app = error_app(503, "ServiceUnavailableError", str(error), "model")
            elif isinstance(error.__cause__, ArtifactError):
                app = error_app(404, "NotFoundError", f"There is no policy version {digest}.", "model")
            else:
                message = f"Policy version {digest} can't be loaded at the moment; retry later."
                app = error_app(503, "ServiceUnavailableError", message, "model")
            await app(scope, receive, send)

    async def score(
        self, sequences: Sequence[Sequence[int]], digest: str, priority: int = SCORING_PRIORITY
    ) -> list[list[float]]:
        """Return the logprob of each token given those before it, under a policy version, at temperature 1.

        Args:
            sequences: N lists of 1 to max_model_len token ids.

        Returns:
            N lists of the same lengths. The first entry of each is NaN.

        Raises:
            ValueError: a sequence is too long or has unknown tokens; nothing was scored.
            AdapterUnavailableError, also VersionNotFiniteError; EngineDeadError.
        """
        self._check_sequences(sequences)
        self._not_finite.check(digest)
        async with self._adapters.use(digest):
            lora = self._models.lora_requests[adapter_name(digest)]
            tasks = [asyncio.create_task(self._score_one(list(tokens), lora, priority)) for tokens in sequences]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def check_version(self, digest: str) -> VersionReport | None:
        """Load a policy version and report how it compares with the learner that made it; None if it has no probe.

        Raises AdapterUnavailableError if it can't be loaded at all, and EngineDeadError.
        """
        try:
            async with self._adapters.use(digest):
                return self._checks.report(digest)
        except WrongVersionError:
            return self._checks.report(digest)

    def _check_sequences(self, sequences: Sequence[Sequence[int]]) -> None:
        max_length, vocab_size = self._core.llm.model_config.max_model_len, self._core.llm.model_config.get_vocab_size()
        for k, tokens in enumerate(sequences):
            if not 1 <= len(tokens) <= max_length:
                raise ValueError(f"Sequence {k} has {len(tokens)} tokens; the engine scores 1 to {max_length}.")
            if not 0 <= min(tokens) <= max(tokens) < vocab_size:
                raise ValueError(f"Sequence {k} has a token id outside the vocabulary of {vocab_size} tokens.")

    async def _score_one(self, tokens: list[int], lora: Any, priority: int) -> list[float]:
        """Score all tokens but the last as a prompt, and the last as the generated token, whichever is sampled.

        So max_model_len tokens can be scored, although vLLM must generate one token after a prompt.
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
        outputs = self._core.llm.generate(
            tokens_input(prompt), params, f"score-{uuid.uuid4().hex}", lora_request=lora, priority=priority
        )
        try:
            (output,) = [output async for output in outputs]
        except CoreDeadError as error:
            raise EngineDeadError(f"The vLLM engine core of {self._served_name} died while scoring.") from error
        except VLLMUnprocessableEntityError as error:
            digest = adapter_digest(lora.lora_name)
            raise VersionNotFiniteError(digest, "its logits on the scored tokens aren't finite") from error
        # One entry per prompt token but the first; then the sampled token and the requested one.
        of_prompt, of_next = output.prompt_logprobs, output.outputs[0].logprobs
        assert isinstance(of_prompt, FlatLogprobs) and isinstance(of_next, FlatLogprobs)
        logprobs = [math.nan, *of_prompt.logprobs, of_next.logprobs[-1]]
        assert len(logprobs) == len(tokens), f"{len(logprobs)} logprobs for {len(tokens)} tokens"
        return logprobs

    async def _load_adapter(self, digest: str) -> None:
        """Load an adapter and check that it is applied: its logprobs of the probe are those of its learner.

        One that isn't is loaded once more, then refused with WrongVersionError.
        """
        self._checks.check(digest)
        verdict = await self._load_and_judge(digest)
        if verdict is not None and not verdict.is_right:
            logger.error("Policy version %s is loaded again: %s", digest, verdict)
            await self._unload_adapter(digest)
            await self._core.unless_dead(self._core.llm.reset_prefix_cache())
            verdict = await self._load_and_judge(digest)
            if verdict is not None and not verdict.is_right:
                await self._unload_adapter(digest)
                raise self._checks.refuse(digest, verdict)
        self._checks.accept(digest, verdict)

    async def _load_and_judge(self, digest: str) -> Verdict | None:
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        directory, probe = await asyncio.to_thread(self._copy_adapter, digest)
        # Load the adapter into the core now, which rejects a bad one: a request for an adapter that can't be loaded
        # would kill the core. Never load in place: the prefix cache keeps results of the old weights.
        request = LoadLoRAAdapterRequest(lora_name=adapter_name(digest), lora_path=str(directory))
        response = await self._core.unless_dead(self._models.load_lora_adapter(request))
        if isinstance(response, ErrorResponse):
            shutil.rmtree(directory, ignore_errors=True)
            raise AdapterUnavailableError(f"vLLM can't load policy version {digest}: {response.error.message}")
        try:
            return await self._check_logits(digest, probe)
        except BaseException:
            await self._unload_adapter(digest)
            raise

    async def _check_logits(self, digest: str, probe: VersionProbe | None) -> Verdict | None:
        """Score the probe, so that a version that isn't finite or isn't applied is refused before anybody gets a token.

        Return None for a version without a probe of its own, which is scored on the general one.
        """
        model = self._core.llm.model_config
        tokens = probe.token_ids if probe else probe_token_ids(model.hf_config)
        lora = self._models.lora_requests[adapter_name(digest)]
        try:
            found = await self._score_one(tokens[: model.max_model_len], lora, PROBE_PRIORITY)
        except VersionNotFiniteError:
            self._not_finite.refuse(digest, "its logits on the probe aren't finite")
            self._not_finite.check(digest)
            raise
        is_whole = len(found) == len(tokens)
        return probe.judge(found[1:], str(model.dtype)) if probe and is_whole else None

    def _see_not_finite(self, name: str) -> str:
        """Record that a request under the adapter `name` got logits that aren't finite. Return the client's message."""
        self._not_finite.see(adapter_digest(name))
        logger.error("A request under %s got logits that aren't finite", name)
        return f"The logits of {name} aren't finite after this prompt: its weights are too large. {_REMEDY}"

    def _copy_adapter(self, digest: str) -> tuple[Path, VersionProbe | None]:
        """Return a new private directory with the adapter's files (hard links where possible), and the adapter's probe.

        The core may read them again at any time and dies if they are missing; the checkpoint may be deleted meanwhile.
        """
        source = self._fetch(digest)
        _check_targets(source, self._lora)
        try:
            dtype: Any = self._core.llm.model_config.dtype  # vLLM has replaced names of types
            check_weights(source, dtype)
        except ValueError as error:
            self._not_finite.refuse(digest, str(error))
            self._not_finite.check(digest)
        probe = VersionProbe.of_checkpoint(source)
        directory = Path(tempfile.mkdtemp(prefix=f"{digest[:12]}-", dir=self._directory.name))
        for name in ADAPTER_FILES:
            try:
                os.link(source / name, directory / name)
            except OSError:
                shutil.copyfile(source / name, directory / name)
        return directory, probe

    async def _unload_adapter(self, digest: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        self._checks.forget(digest)
        name = adapter_name(digest)
        directory = self._models.lora_requests[name].lora_path
        await self._core.unless_dead(self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name)))
        # A request that was just aborted may still be in the core's batch, so the files stay for a while.
        remove = partial(shutil.rmtree, directory, ignore_errors=True)
        asyncio.get_running_loop().call_later(RETIRED_ADAPTER_S, remove)


def adapter_name(digest: str) -> str:
    """Return the name of a policy version in the engine, and the `model` of its responses.

    A name always means the same weights, because vLLM's prefix cache uses it as a key.
    """
    return f"{_NAME_PREFIX}{digest}"


def adapter_digest(name: str) -> str:
    """Return the digest in the engine's name of a policy version."""
    return name.removeprefix(_NAME_PREFIX)


def _check_targets(directory: Path, lora: LoraSettings) -> None:
    """Raise ValueError for an adapter on modules that vLLM wasn't configured to adapt: it would ignore them."""
    adapted = json.loads((directory / "adapter_config.json").read_text())["target_modules"]
    if unexpected := sorted(set(adapted) - set(lora.target_modules)):
        raise ValueError(f"it adapts {', '.join(unexpected)}, which lora.target_modules doesn't name")


_NAME_PREFIX = "policy-"
_REMEDY = (
    "A learning rate that is too high is the usual cause. Request an earlier version (append :stepN to the model's "
    "name), or delete this one, so that training continues from the version before."
)
