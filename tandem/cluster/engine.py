"""The vLLM engine of a base model: OpenAI requests and scoring under any policy version, loaded on demand.

Importing this module imports neither vLLM nor torch: vLLM reads its environment variables when it is imported, so the
process that runs an Engine must have been started with `engine_environment`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import multiprocessing
import os
import shutil
import tempfile
import uuid
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict

from tandem.cluster.adapter_pool import AdapterPool
from tandem.cluster.config import EngineConfig, LoraConfig
from tandem.cluster.errors import AdapterUnavailableError, ArtifactError, EngineDeadError
from tandem.cluster.openai_app import (
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

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

# vLLM's other routes change the engine that everybody shares.
ROUTES = frozenset({("POST", "/v1/chat/completions"), ("POST", "/v1/completions")})
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CPU_KV_CACHE_BYTES = 1 << 30  # when the configuration names no size; vLLM's own default is most of the memory
CPU_BLOCK_SIZE = 32  # tokens; the default of 128 would share no prefix shorter than that
SCORING_PRIORITY = 100  # vLLM runs lower numbers first; chat has 0
RETIRED_ADAPTER_S = 60.0


class EngineLoad(TypedDict):
    num_unfinished: int  # requests that vLLM has accepted and not finished
    adapters: list[str]  # digests of the loaded policy versions, the least recently used first


def engine_environment(device: Literal["cpu", "cuda"], model_path: str, num_threads: int = 1) -> dict[str, str]:
    """The environment variables that an engine's process must be started with."""
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": "",  # requests are authenticated before they come here
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(model_path).is_dir():
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if device == "cpu":
        env |= {
            # On a CPU this gives the worker no process apart from the engine core's: one import of vLLM less.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Two OpenMP threads beside a learner's on the same cores make vLLM up to 30 times slower.
            "OMP_NUM_THREADS": str(num_threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TORCH_COMPILE_DISABLE": "1",  # compiling would hold up the first request for many seconds
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
    return env


def engine_arguments(
    config: EngineConfig,
    model_path: str,
    served_name: str,
    max_model_len: int | None,
    lora: LoraConfig,
    device: Literal["cpu", "cuda"],
) -> list[str]:
    """The arguments of `vllm serve` that this engine runs with. `config.extra_args` come last, so they win.

    Raises ValueError for what vLLM would compute wrongly.
    """
    if "lm_head" in lora.target_modules:
        # vLLM takes each row's adapter from the sampled tokens, of which prompt logprobs have more or fewer rows.
        raise ValueError("vLLM can't score prompts under a LoRA on lm_head: remove it from lora.target_modules.")
    dtype = {"cpu": "float32", "cuda": "bfloat16"}[device] if config.dtype == "auto" else config.dtype
    kv_cache_bytes = config.kv_cache_memory_bytes
    if device == "cpu" and kv_cache_bytes is None and config.gpu_memory_utilization is None:
        kv_cache_bytes = CPU_KV_CACHE_BYTES
    options = {
        "model": model_path,
        "served-model-name": served_name,
        "dtype": dtype,
        "max-model-len": max_model_len,
        "max-num-seqs": config.max_num_seqs,
        "max-loras": config.max_loras,
        "max-cpu-loras": config.max_cpu_loras,
        "max-lora-rank": next(rank for rank in VLLM_LORA_RANKS if rank >= lora.r),
        "kv-cache-memory-bytes": kv_cache_bytes,
        "gpu-memory-utilization": config.gpu_memory_utilization,
        "tool-call-parser": config.tool_call_parser,
        "generation-config": "vllm",  # a request's sampling settings are its own, not the model directory's
        "logprobs-mode": "raw_logprobs",  # of the policy itself, before temperature and top-p
        "scheduling-policy": "priority",
    }
    flags = ["enable-lora", "enable-prefix-caching", "enable-auto-tool-choice", "return-tokens-as-token-ids"]
    flags += ["disable-log-stats"]
    if device == "cpu":
        options |= {"block-size": CPU_BLOCK_SIZE, "worker-extension-cls": "tandem.cluster.cpu_lora.WorkerExtension"}
        flags += ["enforce-eager"]
    named = [f"--{name}={value}" for name, value in options.items() if value is not None]
    targets = ["--lora-target-modules", *lora.target_modules]
    return [*named, *targets, *(f"--{flag}" for flag in flags), *config.extra_args]


class Engine:
    """One replica of vLLM, its core in a process of its own, serving every policy version of a base model.

        engine = Engine(config, model_path, "my-model", artifacts.pull_checkpoint, max_model_len, lora)
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
        lora: LoraConfig,
    ):
        """`fetch` returns the local directory of a version's checkpoint, or raises ArtifactError; it may block."""
        self._config, self._model_path, self._served_name = config, model_path, served_name
        self._fetch, self._max_model_len, self._lora = fetch, max_model_len, lora
        self._adapters = AdapterPool(self._load_adapter, self._unload_adapter, config.max_cpu_loras)
        self._directory: tempfile.TemporaryDirectory[str]
        self._llm: AsyncLLM
        self._app: ASGIApp
        self._models: Any  # vLLM's table of the adapters it knows by name

    async def start(self, timeout_s: float = 600) -> None:
        """Loads the base model and starts the engine core. Raises EngineDeadError with the cause, also when it takes
        longer than `timeout_s`."""
        from vllm.platforms import current_platform

        device: Literal["cpu", "cuda"] = "cpu" if current_platform.is_cpu() else "cuda"
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-engine-")
        try:
            args = parse_arguments(
                engine_arguments(
                    self._config, self._model_path, self._served_name, self._max_model_len, self._lora, device
                )
            )
            self._llm = await _start_core(args, timeout_s)
            if device == "cpu":
                await self._llm.collective_rpc("fix_cpu_lora")
            app = await build_openai_app(self._llm, args)
        except Exception as error:
            await self.stop()
            raise EngineDeadError(
                f"The vLLM engine of {self._served_name} didn't start: {error} (The log of its process says more.)"
            ) from error
        self._app, self._models = app, app.state.openai_serving_models

    async def stop(self) -> None:
        """Ends the engine core and removes what this engine wrote."""
        if hasattr(self, "_llm"):
            await asyncio.to_thread(self._llm.shutdown)
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    async def check_health(self) -> None:
        """Raises EngineDeadError when the engine core has died; this engine can't recover and must be replaced."""
        if self._llm.errored:
            raise EngineDeadError(f"The vLLM engine core of {self._served_name} has died.") from self._llm.dead_error

    def load(self) -> EngineLoad:
        return {"num_unfinished": self._llm.get_num_unfinished_requests(), "adapters": self._adapters.digests}

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
                body = _policy_request(body, adapter_name(digest))
            except ValueError as error:
                app = error_app(400, "BadRequestError", str(error))
        async with aclosing(call_app(app, method, path, headers, body)) as items:
            async for item in items:
                yield item

    async def _serve(self, digest: str, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application: vLLM's, with the adapter loaded until it is done, whether or not the client waits."""

        async def send_unless_dead(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                await self.check_health()
            await send(message)

        try:
            await self.check_health()
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
        max_length, vocab_size = self._llm.model_config.max_model_len, self._llm.model_config.get_vocab_size()
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
        outputs = self._llm.generate(
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
        response = await self._models.load_lora_adapter(request)
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
        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        # The last request may have been aborted just now and still be in the core's batch, so the files stay a while.
        remove = partial(shutil.rmtree, directory, ignore_errors=True)
        asyncio.get_running_loop().call_later(RETIRED_ADAPTER_S, remove)


def adapter_name(digest: str) -> str:
    """The name of a policy version in the engine, and the `model` of its responses. Names are never reused for
    other weights, because vLLM's prefix cache goes by them."""
    return f"policy-{digest}"


def _check_adapter(directory: Path, lora: LoraConfig) -> None:
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


def _policy_request(body: bytes, name: str) -> bytes:
    """The request body with its `model` set. Raises ValueError for JSON that vLLM would answer with a 500, or worse:
    a request whose numbers or text its messages can't carry to the engine core would count as unfinished for ever."""
    try:
        request = json.loads(body, parse_int=_int64, parse_constant=_no_constant)
        if not isinstance(request, dict):
            raise ValueError("it isn't a JSON object")
        return json.dumps(request | {"model": name}, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The request body can't be read: {error}.") from error


def _int64(digits: str) -> int:
    if not -(2**63) <= (value := int(digits)) < 2**63:
        raise ValueError(f"{digits} doesn't fit 64 bits")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't JSON")


async def _start_core(args: Namespace, timeout_s: float) -> AsyncLLM:
    """The engine with its core process running. vLLM blocks until the core is up, so it does that in a thread."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    creation = asyncio.create_task(asyncio.to_thread(AsyncLLM.from_engine_args, AsyncEngineArgs.from_cli_args(args)))
    await asyncio.wait({creation}, timeout=timeout_s)
    if creation.done():
        return creation.result()
    creation.add_done_callback(lambda task: task.exception())
    for process in multiprocessing.active_children():  # the thread ends when it sees that the core has
        process.kill()
    raise TimeoutError(f"it took longer than {timeout_s:.0f} s, and was ended.")
