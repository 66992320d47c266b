"""Loads policy versions into vLLM's core. Each is checked before any request gets a token of it.

Importing this module imports neither vLLM nor torch.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from typing_extensions import Buffer

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.engine.core.engine_core import EngineCore
from tandem.cluster.engine.metrics.usage import Charged, charging
from tandem.cluster.engine.scoring import score_one
from tandem.cluster.engine.versions.adapter_names import adapter_name
from tandem.cluster.engine.versions.finiteness import NotFiniteVersions, check_weights
from tandem.cluster.engine.versions.version_checks import VersionChecks
from tandem.cluster.errors import AdapterUnavailableError, VersionNotFiniteError
from tandem.rl.checkpoint_files import ADAPTER_CONFIG, MANIFEST
from tandem.rl.models.lora.adapter_config import EXPERTS
from tandem.rl.probe import QUANTIZED_WEIGHTS, probe_token_ids
from tandem.rl.settings import LoraSettings
from tandem.rl.version_probe import Verdict, VersionProbe

Files = Mapping[str, Buffer]
"""The bytes of a checkpoint's files by name: those of its adapter and its manifest."""

logger = logging.getLogger(__name__)
PROBE_PRIORITY = -1  # before chat, which has 0
RETIRED_ADAPTER_S = 60.0


class VersionLoader:
    """Loads and unloads the adapters of one engine, for an `AdapterPool`."""

    def __init__(
        self,
        core: EngineCore,
        models: Any,
        directory: str,
        fetch: Callable[[str], Path],
        lora: LoraSettings,
        not_finite: NotFiniteVersions,
        checks: VersionChecks,
        has_own_weights: bool = False,
    ):
        """Make a loader for a core that has started.

        Args:
            models: vLLM's table of adapters by name.
            directory: for private copies of the files.
            fetch: as in `Engine`.
            has_own_weights: whether the base weights come from other files than the learners'.
        """
        self._core, self._models, self._directory = core, models, directory
        self._fetch, self._lora = fetch, lora
        self._not_finite, self._checks = not_finite, checks
        self._has_own_weights = has_own_weights
        self._offered: dict[str, Path] = {}

    async def load(self, digest: str) -> None:
        """Load an adapter and check that it is applied: its logprobs of the probe are those of its learner.

        One that isn't is loaded once more, then refused with WrongVersionError.
        """
        self._checks.check(digest)
        verdict = await self._load_and_judge(digest)
        if verdict is not None and not verdict.is_right:
            logger.error("Policy version %s is loaded again: %s", digest, verdict)
            await self.unload(digest)
            await self._core.unless_dead(self._core.llm.reset_prefix_cache())
            verdict = await self._load_and_judge(digest)
            if verdict is not None and not verdict.is_right:
                await self.unload(digest)
                raise self._checks.refuse(digest, verdict)
        self._checks.accept(digest, verdict)

    async def _load_and_judge(self, digest: str) -> Verdict | None:
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        directory, probe = await asyncio.to_thread(self.private_copy, digest)
        # Load the adapter into the core now, which rejects a bad one: a request for an adapter that can't be loaded
        # would kill the core. Never load in place: the prefix cache keeps results of the old weights.
        request = LoadLoRAAdapterRequest(
            lora_name=adapter_name(digest),
            lora_path=str(directory),
            is_3d_lora_weight=await asyncio.to_thread(_adapts_experts, directory),
        )
        response = await self._core.unless_dead(self._models.load_lora_adapter(request))
        if isinstance(response, ErrorResponse):
            shutil.rmtree(directory, ignore_errors=True)
            raise AdapterUnavailableError(f"vLLM can't load policy version {digest}: {response.error.message}")
        try:
            return await self._check_logits(digest, probe)
        except BaseException:
            await self.unload(digest)
            raise

    async def _check_logits(self, digest: str, probe: VersionProbe | None) -> Verdict | None:
        """Score the probe, so that a version that isn't finite or isn't applied is refused before anybody gets a token.

        Return None for a version without a probe of its own, which is scored on the general one.
        """
        model = self._core.llm.model_config
        tokens = probe.token_ids if probe else probe_token_ids(model.hf_config)
        lora = self._models.lora_requests[adapter_name(digest)]
        try:
            with charging(Charged()):  # not to the request that needs the version
                found = await score_one(self._core, tokens[: model.max_model_len], lora, PROBE_PRIORITY)
        except VersionNotFiniteError:
            self._not_finite.refuse(digest, "its logits on the probe aren't finite")
            self._not_finite.check(digest)
            raise
        is_whole = len(found) == len(tokens)
        dtype = QUANTIZED_WEIGHTS if self._has_own_weights else str(model.dtype)
        return probe.judge(found[1:], dtype) if probe and is_whole else None

    @asynccontextmanager
    async def offered(self, digest: str, files: Files) -> AsyncIterator[None]:
        """In the block, load a version from these files instead of fetching it: it may not be durable yet."""
        if digest in self._offered:  # by another caller, with the same files
            yield
            return
        directory = Path(tempfile.mkdtemp(prefix=f"offered-{digest[:12]}-", dir=self._directory))
        try:
            await asyncio.to_thread(_write_verified, directory, digest, files)
            self._offered[digest] = directory
            yield
        finally:
            self._offered.pop(digest, None)
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    def private_copy(self, digest: str) -> tuple[Path, VersionProbe | None]:
        """Return a new private directory with the adapter's files (hard links where possible), and the adapter's probe.

        The core may read them again at any time and dies if they are missing; the checkpoint may be deleted meanwhile.
        """
        source = self._offered.get(digest) or self._fetch(digest)
        _check_targets(source, self._lora)
        try:
            dtype: Any = self._core.llm.model_config.dtype  # vLLM has replaced names of types
            check_weights(source, dtype)
        except ValueError as error:
            self._not_finite.refuse(digest, str(error))
            self._not_finite.check(digest)
        probe = VersionProbe.of_checkpoint(source)
        directory = Path(tempfile.mkdtemp(prefix=f"{digest[:12]}-", dir=self._directory))
        for name in ADAPTER_FILES:
            try:
                os.link(source / name, directory / name)
            except OSError:
                shutil.copyfile(source / name, directory / name)
        return directory, probe

    async def unload(self, digest: str) -> None:
        """Remove a version from the core."""
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        self._checks.forget(digest)
        name = adapter_name(digest)
        directory = self._models.lora_requests[name].lora_path
        await self._core.unless_dead(self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name)))
        # A request that was just aborted may still be in the core's batch, so the files stay for a while.
        remove = partial(shutil.rmtree, directory, ignore_errors=True)
        asyncio.get_running_loop().call_later(RETIRED_ADAPTER_S, remove)


def _write_verified(directory: Path, digest: str, files: Files) -> None:
    """Write a checkpoint's files. Raise CheckpointError if they aren't those of the version."""
    from tandem.rl.checkpoints import verify_adapter

    for name in (*ADAPTER_FILES, MANIFEST):
        (directory / name).write_bytes(files[name])
    verify_adapter(directory, digest)


def _check_targets(directory: Path, lora: LoraSettings) -> None:
    """Raise ValueError for an adapter on modules that vLLM wasn't configured to adapt: it would ignore them."""
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    adapted = {*config["target_modules"], *([EXPERTS] if _adapts_experts(directory) else [])}
    if unexpected := sorted(adapted - set(lora.target_modules)):
        raise ValueError(f"it adapts {', '.join(unexpected)}, which lora.target_modules doesn't name")


def _adapts_experts(directory: Path) -> bool:
    return bool(json.loads((directory / ADAPTER_CONFIG).read_text()).get("target_parameters"))
