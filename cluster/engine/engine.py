"""The vLLM engine of a base model: OpenAI requests and scoring under any policy version, loaded on demand.

Importing this module imports neither vLLM nor torch. vLLM reads its environment variables at import, so the process of
an Engine must be started with `engine_environment`.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TypedDict

from tandem.cluster.config import DeadlinesConfig, EngineConfig
from tandem.cluster.engine.core.engine_core import EngineCore
from tandem.cluster.engine.metrics.engine_stats import EngineCounts, EngineStats
from tandem.cluster.engine.metrics.usage import Charged, MeteredOutputs, UsageMeter, charging
from tandem.cluster.engine.requests.completions import Completions
from tandem.cluster.engine.requests.openai_app import (
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
    build_openai_app,
    error_app,
    parse_arguments,
)
from tandem.cluster.engine.requests.refusals import name_places_of_invalid_fields
from tandem.cluster.engine.requests.vllm_routes import completion_app
from tandem.cluster.engine.samples.futures import SampleLimits
from tandem.cluster.engine.samples.samples_app import Samples
from tandem.cluster.engine.samples.sampling import EngineSampling
from tandem.cluster.engine.scoring import score_one
from tandem.cluster.engine.setup.lora_support import check_architecture, check_modules
from tandem.cluster.engine.setup.settings import EngineDevice, engine_arguments, engine_environment, weights_path
from tandem.cluster.engine.sleep import EngineSleep
from tandem.cluster.engine.versions.adapter_names import adapter_digest, adapter_name
from tandem.cluster.engine.versions.adapter_pool import AdapterPool
from tandem.cluster.engine.versions.finiteness import FiniteOutputs, NotFiniteVersions
from tandem.cluster.engine.versions.version_checks import VersionChecks, VersionReport
from tandem.cluster.engine.versions.version_loader import Files, VersionLoader
from tandem.cluster.engine.vllm_changes.text_only import import_models_without_torchvision, override_text_part
from tandem.cluster.engine.vllm_changes.token_texts import TokenTexts
from tandem.cluster.errors import (
    AdapterUnavailableError,
    ArtifactError,
    EngineAsleepError,
    EngineDeadError,
    VersionNotFiniteError,
    WrongVersionError,
)
from tandem.cluster.processes.heap import freeze_heap
from tandem.rl.settings import LoraSettings

__all__ = ["Engine", "EngineLoad", "adapter_name", "engine_environment"]

logger = logging.getLogger(__name__)

SCORING_PRIORITY = 100  # vLLM runs lower numbers first; chat has 0


class EngineLoad(TypedDict):
    num_unfinished: int
    """Requests that vLLM has accepted and not finished."""
    num_running: int
    num_waiting: int
    kv_usage: float
    """Fraction of the KV cache."""
    prefix_hit_rate: float | None
    """Fraction of prompt tokens, since the start."""
    adapters: list[str]
    """Digests of the loaded policy versions, the least recently used first."""
    adapter_capacity: int
    slots: int
    """Policy versions that a batch can mix."""
    slots_used: int
    is_asleep: bool
    """Learners use its GPU."""


class EngineSizes(TypedDict):
    device: str
    """The GPU's name, or cpu."""
    max_model_len: int
    max_num_seqs: int
    """Requests in a batch."""
    dtype: str
    kv_tokens: int
    """Tokens that the KV cache holds."""


class Engine:
    """One replica of vLLM, its core in a process of its own, serving every policy version of a base model.

        engine = Engine(config, model_path, "my-model", artifacts.pull_adapter, max_model_len, lora)
        await engine.start()
        await engine.completions(scope, receive, send)  # an ASGI application
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
        hold_s: float = DeadlinesConfig().inference_s / 2,
        sample_limits: SampleLimits | None = None,
    ):
        """Prepare an engine; `start` starts it.

        Args:
            fetch: returns a local directory with a version's adapter, or raises ArtifactError; may block.
            answer_s: a core that doesn't answer for this long is killed.
            hold_s: a request waits for a sleeping engine this long before it gets a 503.
        """
        self._config, self._model_path, self._served_name = config, model_path, served_name
        self._fetch, self._max_model_len, self._lora = fetch, max_model_len, lora
        self._core, self._answer_s = EngineCore(served_name, answer_s), answer_s
        self.sleep = EngineSleep(self._fall_asleep, self._wake_up, hold_s, served_name)
        """While learners use its GPU, with `config.sleep`."""
        self.usage = UsageMeter()
        self._device: EngineDevice
        self._not_finite = NotFiniteVersions()
        self._checks = VersionChecks()
        self.stats = EngineStats(served_name)
        self._directory: tempfile.TemporaryDirectory[str]
        self._app: ASGIApp
        self._models: Any  # vLLM's table of adapters by name
        self._loader: VersionLoader
        self._adapters: AdapterPool
        self.completions = Completions(self._serve)
        """The ASGI application. Beside errors of the request: 404 for a missing version, 422 for one whose logits
        aren't finite, 503 for a version that can't be loaded now or a dead engine."""
        self._sample_limits = sample_limits or SampleLimits()
        self.samples: Samples
        """The routes of samples for the Tinker API, once the engine has started."""

    async def start(self, timeout_s: float = 600) -> None:
        """Load the base model and start the engine core. Raises EngineDeadError, also after `timeout_s`."""
        if not self._config.num_gpus:
            self._core.preload()
        from vllm.platforms import current_platform
        from vllm.transformers_utils.config import get_config

        from tandem.rl.models.base_config import shares_prefixes

        import_models_without_torchvision()
        device: EngineDevice = "cpu" if current_platform.is_cpu() else "cuda"
        self._device = device
        weights = weights_path(self._config, self._model_path)
        self._directory = tempfile.TemporaryDirectory(prefix="tandem-engine-")
        try:
            args = parse_arguments(
                engine_arguments(
                    self._config, self._model_path, self._served_name, self._max_model_len, self._lora, device
                )
            )
            config = await asyncio.to_thread(get_config, weights, trust_remote_code=False)
            await asyncio.to_thread(check_architecture, config)
            args.hf_overrides = override_text_part(args.hf_overrides, config)
            if device == "cpu" and not shares_prefixes(config):
                args.enable_prefix_caching = False  # its kernels there keep a state at the end of a sequence only
            await self._core.start(args, timeout_s, self.stats)
            for method in ("fix_cpu_lora", "close_lone_groups") if device == "cpu" else ():
                await self._call_workers(method)
            adapted = await self._call_workers("adapted_modules")
            check_modules(self._lora.target_modules, chain.from_iterable(adapted), self._served_name)
            scores_prompts = all(await self._call_workers("extend_logprobs"))
            app = await build_openai_app(self._core.llm, args)
            name_places_of_invalid_fields(app)
        except Exception as error:
            await self.stop()
            raise EngineDeadError(
                f"The vLLM engine of {self._served_name} didn't start: {error} (See the log of its process.)"
            ) from error
        self._app, self._models = completion_app(app), app.state.openai_serving_models
        self._loader = VersionLoader(
            self._core,
            self._models,
            self._directory.name,
            self._fetch,
            self._lora,
            self._not_finite,
            self._checks,
            has_own_weights=self._config.path is not None,
        )
        self._adapters = AdapterPool(
            self._loader.load, self._loader.unload, self._config.max_cpu_loras, self._served_name
        )
        sampling = EngineSampling(
            self._core,
            self._models,
            self._adapters,
            self.sleep,
            self._not_finite,
            self._sample_limits.max_waiting,
            scores_prompts,
        )
        self.samples = Samples(sampling.checked, sampling.sample, self._served_name, self._sample_limits)
        FiniteOutputs(self._core.llm.output_processor, self._see_not_finite).install()
        MeteredOutputs(self._core.llm.output_processor, self.usage).install()
        TokenTexts.install()
        self._core.watch()
        freeze_heap()

    async def _call_workers(self, method: str) -> list[Any]:
        """Return the answers of all of the core's processes that compute the model (`WorkerExtension`)."""
        answers: list[Any] = await self._core.unless_dead(self._core.llm.collective_rpc(method, timeout=self._answer_s))
        return answers

    async def stop(self) -> None:
        """End the engine core and remove this engine's files."""
        if hasattr(self, "samples"):
            await self.samples.futures.close()
        await self.sleep.close()
        await self._core.stop()
        if hasattr(self, "_directory"):
            self._directory.cleanup()

    async def _fall_asleep(self) -> None:
        """Move the weights to main memory and forget the KV cache. On a CPU, there is nothing to free but cores."""
        if self._device == "cuda":
            await self._core.or_kill("fall asleep", self._core.llm.sleep(level=1, mode="wait"))

    async def _wake_up(self) -> None:
        if self._device == "cuda":
            await self._core.or_kill("wake up", self._core.llm.wake_up())

    async def check_health(self) -> None:
        """Raise EngineDeadError if the engine core died or was killed. This engine must then be replaced."""
        self.check_core()

    def check_core(self) -> None:
        """The same, in any thread."""
        self._core.check_health()

    def not_finite(self) -> list[str]:
        """Return the digests of versions that lately got no completion because their logits aren't finite."""
        return self._not_finite.recent()

    def sizes(self) -> EngineSizes:
        """Return the sizes that vLLM has chosen."""
        from vllm.platforms import current_platform

        config = self._core.llm.vllm_config
        blocks = config.cache_config.num_gpu_blocks or 0  # on a CPU, too
        return {
            "device": "cpu" if self._device == "cpu" else current_platform.get_device_name(),
            "max_model_len": config.model_config.max_model_len,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
            "kv_tokens": blocks * config.cache_config.block_size,
        }

    def counts(self) -> EngineCounts:
        """Return totals since the start. Tokens are those of completions, as usage counts them."""
        used = self.usage.total
        return {**self.stats.counts, "prompt_tokens": used.prompt_tokens, "sampled_tokens": used.sampled_tokens}

    def load(self) -> EngineLoad:
        unfinished, stats = self._core.llm.get_num_unfinished_requests(), self.stats
        lora = self._core.llm.vllm_config.lora_config
        # vLLM reports with its steps, and aborted requests may have been the last ones.
        running = min(stats.num_running, unfinished)
        return {
            "num_unfinished": unfinished,
            "num_running": running,
            "num_waiting": min(stats.num_waiting, unfinished - running),
            "kv_usage": stats.kv_usage,
            "prefix_hit_rate": stats.prefix_hit_rate,
            "adapters": self._adapters.digests,
            "adapter_capacity": self._config.max_cpu_loras,
            "slots": lora.max_loras if lora else 0,
            "slots_used": len(stats.running_adapters) if running else 0,
            "is_asleep": self.sleep.is_asleep,
        }

    async def _serve(self, digest: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a checked request with the adapter loaded until the answer ends, even if the client disconnects."""

        async def send_unless_dead(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 500:
                self._core.check_health()
            await send(message)

        try:
            self._core.check_health()
            self._not_finite.check(digest)
            async with self.sleep.awake(), self._adapters.use(digest):
                await self._app(scope, receive, send_unless_dead)
        except EngineAsleepError as error:
            app = error_app(503, "ServiceUnavailableError", str(error))
            await app(scope, receive, send)
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
        self, sequences: Sequence[Sequence[int]], digest: str, priority: int = SCORING_PRIORITY, job_id: str = ""
    ) -> list[list[float]]:
        """Return the logprob of each token given those before it, under a policy version, at temperature 1.

        Args:
            sequences: N lists of 1 to max_model_len token ids.
            job_id: the job to which the time is charged.

        Returns:
            N lists of the same lengths. The first entry of each is NaN.

        Raises:
            ValueError: a sequence is too long or has unknown tokens; nothing was scored.
            AdapterUnavailableError, also VersionNotFiniteError; EngineAsleepError; EngineDeadError.
        """
        self._check_sequences(sequences)
        self._not_finite.check(digest)
        async with self.sleep.awake(), self._adapters.use(digest):
            lora = self._models.lora_requests[adapter_name(digest)]
            with charging(Charged("score", job_id=job_id) if job_id else Charged()):
                tasks = [asyncio.create_task(score_one(self._core, tokens, lora, priority)) for tokens in sequences]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()

    async def check_version(self, digest: str, files: Files | None = None) -> VersionReport | None:
        """Load a policy version and report how it compares with the learner that made it; None if it has no probe.

        Args:
            files: its files, for a version that can't be fetched yet.

        Raises AdapterUnavailableError if it can't be loaded at all, EngineAsleepError and EngineDeadError.
        """
        if digest in self._adapters.digests:
            files = None
        async with self._loader.offered(digest, files) if files else nullcontext():
            try:
                async with self.sleep.awake(), self._adapters.use(digest):
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

    def _see_not_finite(self, name: str) -> str:
        """Record that a request under the adapter `name` got logits that aren't finite. Return the client's message."""
        self._not_finite.see(adapter_digest(name))
        logger.error("A request under %s got logits that aren't finite", name)
        return f"The logits of {name} aren't finite after this prompt: its weights are too large. {_REMEDY}"


_REMEDY = (
    "A learning rate that is too high is the usual cause. Request an earlier version (append :stepN to the model's "
    "name), or delete this one, so that training continues from the version before."
)
