"""The vLLM engine of a base model: OpenAI requests and scoring under any policy version, loaded on demand.

Importing this module imports neither vLLM nor torch: vLLM reads its environment variables when it is imported, so the
process that runs an Engine must have been started with `engine_environment`.
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
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.config import DeadlinesConfig, EngineConfig
from tandem.cluster.engine.adapter_pool import AdapterPool
from tandem.cluster.engine.core import EngineCore
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
    policy_request,
)
from tandem.cluster.engine.settings import engine_arguments, engine_environment
from tandem.cluster.errors import AdapterUnavailableError, ArtifactError, EngineDeadError
from tandem.cluster.processes.heap import freeze_heap
from tandem.rl.settings import LoraSettings

__all__ = ["Engine", "EngineLoad", "adapter_name", "engine_environment"]

logger = logging.getLogger(__name__)

# vLLM's other routes change the engine that everybody shares.
ROUTES = frozenset({("POST", "/v1/chat/completions"), ("POST", "/v1/completions")})
SCORING_PRIORITY = 100  # vLLM runs lower numbers first; chat has 0
RETIRED_ADAPTER_S = 60.0


class EngineLoad(TypedDict):
    num_unfinished: int  # requests that vLLM has accepted and not finished
    adapters: list[str]  # digests of the loaded policy versions, the least recently used first


class Engine:
    """One replica of vLLM, its core in a process of its own, serving every policy version of a base model.

        engine = Engine(config, model_path, "my-model", artifacts.pull_adapter, max_model_len, lora)
        await engine.start()
        async for item in engine.http("POST", "/v1/chat/completions", headers, body, digest): ...
        logprobs = await engine.score(sequences, digest)

    A policy version is a LoRA adapter named by its digest; every request runs on one, also that of version 0, which
    is zero. A version that isn't loaded is fetched first. Versions beyond `config.max_cpu_loras` are dropped, the
    least recently used first, and load again when they are asked for.
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
        """`fetch` returns a local directory with a version's adapter, or raises ArtifactError; it may block. A core
        that doesn't answer for `answer_s` is ended."""
        self._config, self._model_path, self._served_name = config, model_path, served_name
        self._fetch, self._max_model_len, self._lora = fetch, max_model_len, lora
        self._core, self._answer_s = EngineCore(served_name, answer_s), answer_s
        self._adapters = AdapterPool(self._load_adapter, self._unload_adapter, config.max_cpu_loras)
        self._directory: tempfile.TemporaryDirectory[str]
        self._app: ASGIApp
        self._models: Any  # vLLM's table of the adapters it knows by name

    async def start(self, timeout_s: float = 600) -> None:
        """Loads the base model and starts the engine core. Raises EngineDeadError with the cause, also when it takes
        longer than `timeout_s`."""
        if not self._config.num_gpus:
            self._core.preload()
        from vllm.platforms import current_platform

        device = "cpu" if current_platform.is_cpu() else "cuda"
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
        except Exception as error:
            await self.stop()
            raise EngineDeadError(
                f"The vLLM engine of {self._served_name} didn't start: {error} (The log of its process says more.)"
            ) from error
        self._app, self._models = app, app.state.openai_serving_models
        self._core.watch()
        freeze_heap()

    async def stop(self) -> None:
        """Ends the engine core and removes what this engine wrote."""
        await self._core.stop()
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    async def check_health(self) -> None:
        """Raises EngineDeadError when the engine core has died, or was ended because it gave no answer; this engine
        can't recover and must be replaced."""
        self._core.check_health()

    def load(self) -> EngineLoad:
        return {"num_unfinished": self._core.llm.get_num_unfinished_requests(), "adapters": self._adapters.digests}

    async def http(
        self, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes, digest: str
    ) -> AsyncIterator[ResponseStart | bytes]:
        """Answers an OpenAI request under a policy version: (status, headers) first, then the chunks of the body.

        The `model` of the body is replaced by the version's. What is wrong is answered, in OpenAI's shape: a bad
        request by vLLM itself with a 4xx, a version that isn't there with 404, one that can't be loaded now, or an
        engine that has died, with 503. Closing the generator early ends the generation.
        """
        app: ASGIApp = partial(self._serve, digest)
        if (method, path) not in ROUTES:
            app = error_app(404, "NotFoundError", f"The engine has no route {method} {path}.")
        else:
            try:
                body = policy_request(body, adapter_name(digest))
            except ValueError as error:
                app = error_app(400, "BadRequestError", str(error))
        async with aclosing(call_app(app, method, path, headers, body)) as items:
            async for item in items:
                yield item

    async def _serve(self, digest: str, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: vLLM's, with the adapter loaded until it is done, whether or not the client waits."""

        async def send_unless_dead(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                self._core.check_health()
            await send(message)

        try:
            self._core.check_health()
            async with self._adapters.use(digest):
                await self._app(scope, receive, send_unless_dead)
        except EngineDeadError as error:
            app = error_app(503, "ServiceUnavailableError", f"{error} It is being replaced: try again.")
            await app(scope, receive, send)
        except AdapterUnavailableError as error:
            logger.warning("%s", error)  # the client isn't told: it may name paths
            if isinstance(error.__cause__, ArtifactError):
                app = error_app(404, "NotFoundError", f"There is no policy version {digest}.", "model")
            else:
                message = f"Policy version {digest} can't be loaded at present."
                app = error_app(503, "ServiceUnavailableError", message, "model")
            await app(scope, receive, send)

    async def score(
        self, sequences: Sequence[Sequence[int]], digest: str, priority: int = SCORING_PRIORITY
    ) -> list[list[float]]:
        """The logprob of each token given the tokens before it, under a policy version, at temperature 1.

        sequences: N lists of 1 to max_model_len token ids. Returns N lists of the same lengths; the first entry of
        each is NaN. Raises ValueError for a sequence the engine can't take (before any is scored),
        AdapterUnavailableError, EngineDeadError.
        """
        self._check_sequences(sequences)
        async with self._adapters.use(digest):
            lora = self._models.lora_requests[adapter_name(digest)]
            tasks = [asyncio.create_task(self._score_one(list(tokens), lora, priority)) for tokens in sequences]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    def _check_sequences(self, sequences: Sequence[Sequence[int]]) -> None:
        max_length, vocab_size = self._core.llm.model_config.max_model_len, self._core.llm.model_config.get_vocab_size()
        for k, tokens in enumerate(sequences):
            if not 1 <= len(tokens) <= max_length:
                raise ValueError(f"Sequence {k} has {len(tokens)} tokens; the engine scores 1 to {max_length}.")
            if not 0 <= min(tokens) <= max(tokens) < vocab_size:
                raise ValueError(f"Sequence {k} has a token id outside the vocabulary of {vocab_size} tokens.")

    async def _score_one(self, tokens: list[int], lora: Any, priority: int) -> list[float]:
        """The last token is not part of the prompt: it is scored as the token generated next, whichever is sampled.

        So a sequence of max_model_len tokens can be scored too, although vLLM must generate one token after a prompt.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
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
        # One entry per prompt token but the first; then the sampled token and the one asked for.
        logprobs = [math.nan, *output.prompt_logprobs.logprobs, output.outputs[0].logprobs.logprobs[-1]]
        assert len(logprobs) == len(tokens), f"{len(logprobs)} logprobs for {len(tokens)} tokens"
        return logprobs

    async def _load_adapter(self, digest: str) -> None:
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        directory = await asyncio.to_thread(self._copy_adapter, digest)
        # This loads the adapter into the core first, which refuses a bad one. A request for an adapter that the core
        # can't load would kill it. Never in place: the prefix cache keeps what the old weights computed.
        request = LoadLoRAAdapterRequest(lora_name=adapter_name(digest), lora_path=str(directory))
        response = await self._core.unless_dead(self._models.load_lora_adapter(request))
        if isinstance(response, ErrorResponse):
            shutil.rmtree(directory, ignore_errors=True)
            raise AdapterUnavailableError(f"vLLM can't load policy version {digest}: {response.error.message}")

    def _copy_adapter(self, digest: str) -> Path:
        """A new directory of this engine's own with the adapter's files (links where the file system can).

        The core may read them again at any time while a request runs, and dies when they are gone; the checkpoint
        itself may be deleted by then.
        """
        source = self._fetch(digest)
        _check_adapter(source, self._lora)
        directory = Path(tempfile.mkdtemp(prefix=f"{digest[:12]}-", dir=self._directory.name))
        for name in ADAPTER_FILES:
            try:
                os.link(source / name, directory / name)
            except OSError:
                shutil.copyfile(source / name, directory / name)
        return directory

    async def _unload_adapter(self, digest: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        name = adapter_name(digest)
        directory = self._models.lora_requests[name].lora_path
        await self._core.unless_dead(self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name)))
        # The last request may have been aborted just now and still be in the core's batch, so the files stay a while.
        remove = partial(shutil.rmtree, directory, ignore_errors=True)
        asyncio.get_running_loop().call_later(RETIRED_ADAPTER_S, remove)


def adapter_name(digest: str) -> str:
    """The name of a policy version in the engine, and the `model` of its responses. Names are never reused for
    other weights, because vLLM's prefix cache goes by them."""
    return f"policy-{digest}"


def _check_adapter(directory: Path, lora: LoraSettings) -> None:
    """Raises ValueError for an adapter that vLLM would load and then use wrongly.

    It leaves out weights of modules that it wasn't configured to adapt. Weights that aren't finite make NaN of every
    logprob, and on a CPU also of other versions' tokens in the same batch.
    """
    import torch
    from safetensors.torch import load_file

    adapted = json.loads((directory / "adapter_config.json").read_text())["target_modules"]
    if unexpected := sorted(set(adapted) - set(lora.target_modules)):
        raise ValueError(f"it adapts {', '.join(unexpected)}, which lora.target_modules doesn't name")
    for name, weight in load_file(directory / "adapter_model.safetensors").items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"its weight {name} isn't finite")
