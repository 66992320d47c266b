"""Base models as found on this node: files, tokenizer, longest sequence, version 0."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import BaseModelConfig
from tandem.cluster.engine.setup.settings import weights_path
from tandem.cluster.memory.joint import plan_neighbours
from tandem.cluster.memory.plan import MemoryPlan, Part, Tenant
from tandem.cluster.placement import BasePlacement, Placement
from tandem.rl.errors import PolicyError
from tandem.rl.tiny.model import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

    from tandem.rl.base_text import BaseText
    from tandem.rl.batch import TrainingBatch
    from tandem.rl.config import TrainingConfig
    from tandem.rl.models.geometry import Geometry
    from tandem.rl.settings import LoraSettings
    from tandem.rl.trajectories import TrajectoryGroup


GPU_MAX_MODEL_LEN = 32_768
"""Longest sequence on GPUs unless one is configured: a model's own limit of a million would take all of the memory."""


@dataclass(frozen=True)
class ResolvedBaseModel:
    """A configured base model on this node. Tokenizer and model configuration are loaded on first use."""

    config: BaseModelConfig
    placement: Placement | None = None
    """Of all base models; only for the memory plan. None: learners and engine have the GPUs of `config` alone."""

    @property
    def name(self) -> str:
        return self.config.name

    @cached_property
    def path(self) -> str:
        """A Hugging Face id or a local directory."""
        return resolve_model(self.config.path)

    @cached_property
    def engine_path(self) -> str:
        """A Hugging Face id or a local directory, with the weights that the engine serves."""
        return weights_path(self.config.engine, self.path)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.path)

    @cached_property
    def max_model_len(self) -> int:
        """Longest sequence in tokens: as configured, else the model's own limit, on GPUs at most GPU_MAX_MODEL_LEN.

        Raises ValueError if the configured length exceeds that limit, or if there is neither.
        """
        from tandem.rl.models.base_config import longest_sequence

        limit, configured = longest_sequence(self._model_config), self.config.max_model_len
        if limit is None and configured is None:
            raise ValueError(f"Base model {self.name} names no longest sequence; set its max_model_len.")
        if configured is None:
            assert limit is not None
            return min(limit, GPU_MAX_MODEL_LEN) if self.config.is_on_gpu else limit
        if limit is None:
            return configured
        if configured > limit:
            raise ValueError(
                f"Base model {self.name}: max_model_len {configured} is above its limit of "
                f"{limit} tokens; lower it or leave it out."
            )
        return configured

    @cached_property
    def _model_config(self) -> PreTrainedConfig:
        from tandem.rl.models.base_config import read_config

        return read_config(self.path)

    @cached_property
    def geometry(self) -> Geometry:
        """The sizes of the model and its adapter. Raises PolicyError."""
        from tandem.rl.models.geometry import geometry_of

        return geometry_of(self._model_config, self.config.largest_lora)

    def check(self) -> Geometry:
        """Return the geometry of a model that can be trained, as far as its configuration shows. Loads no weights.

        Raises PolicyError for a model that is rejected when it loads, and ValueError for its longest sequence.
        """
        from tandem.rl.models.base_config import check_config

        with self.named_refusal():
            check_config(self._model_config, self.max_model_len)
            return self.geometry

    def memory_plan(self, gpu_bytes: int, part: Part) -> MemoryPlan:
        """Plan the memory of the GPUs that a learner or an engine of this model is on, with its neighbours there.

        `gpu_bytes` are those of the GPU, unless the configuration has them. Raises PolicyError if there is no room.
        """
        learners, engine = self.config.learners, self.config.engine
        alone = {self.name: BasePlacement(learners.num_gpus or 0.0, engine.num_gpus or 0.0)}
        placed = self.placement.of if self.placement else alone
        with self.named_refusal():
            return plan_neighbours(self.config.gpu_memory_bytes or gpu_bytes, self.name, part, placed, self._tenant)

    def _tenant(self, name: str, part: Part) -> Tenant:
        base = self
        if self.placement and name != self.name:
            base = ResolvedBaseModel(self.placement.config.base_model(name))
        geometry = base.geometry if part == "learner" else base._served_geometry
        return Tenant(base.config, geometry, base.max_model_len)

    @property
    def _served_geometry(self) -> Geometry:
        """The sizes of the files that the engine serves, which may be quantized ones of the same model."""
        if self.engine_path == self.path:
            return self.geometry
        from tandem.rl.models.base_config import read_config
        from tandem.rl.models.geometry import geometry_of

        return geometry_of(read_config(self.engine_path), self.config.largest_lora)

    @contextmanager
    def named_refusal(self) -> Iterator[None]:
        """Have a PolicyError in the block name this base model, one of several that a service may have."""
        try:
            yield
        except PolicyError as error:
            raise PolicyError(f"Base model {self.name} can't be trained: {error}") from error

    @cached_property
    def text(self) -> BaseText:
        """What turning messages into packed rows needs."""
        from tandem.rl.base_text import BaseText
        from tandem.rl.models.base_config import shares_prefixes, text_config

        base = self._model_config
        vocab_size, shares = text_config(base).vocab_size, shares_prefixes(base)
        return BaseText(self.tokenizer, self.max_model_len, vocab_size, shares, self.config.trains_on)

    def build_batch(
        self, groups: Iterable[TrajectoryGroup], config: TrainingConfig, shuffle_seed: int | None
    ) -> TrainingBatch:
        """Build the batch of a job with these groups. Raises as `rl.batch.build_batch` does."""
        from tandem.rl.batch import build_batch
        from tandem.rl.models.base_config import shares_prefixes, text_config

        base = self._model_config
        return build_batch(
            *(groups, self.tokenizer, config, self.max_model_len, shuffle_seed),
            vocab_size=text_config(base).vocab_size,
            shares_prefixes=shares_prefixes(base),
            device=self.config.trains_on,
        )

    def check_groups(self, groups: Iterable[TrajectoryGroup], config: TrainingConfig) -> None:
        """Raise what `build_batch` raises for a job with these groups."""
        from tandem.rl.batch import check_groups
        from tandem.rl.models.base_config import text_config

        vocab_size = text_config(self._model_config).vocab_size
        check_groups(groups, self.tokenizer, config, self.max_model_len, vocab_size)

    def write_initial_version(self, artifacts: Artifacts, lora: LoraSettings | None = None) -> str:
        """Store version 0, a real adapter that changes nothing, durably and return its digest. Idempotent.

        `lora`: the settings of a model that has its own. Raises PolicyError, for these settings LoraLimitError.
        """
        from tandem.cluster.engine.setup.servable import check_servable
        from tandem.rl.checkpoints import LearnerState, write_checkpoint
        from tandem.rl.models.base_config import check_same_shape, read_config
        from tandem.rl.models.lora.adapter import adapter_config, adapter_shapes, initial_adapter

        if lora is not None:
            self.config.check_lora(lora)
        lora = lora or self.config.lora
        with self.named_refusal():
            check_servable(self.config, self._model_config)
            if self.config.lora_limits.target_modules:
                adapter_shapes(self.path, self.config.largest_lora)  # refuses modules that aren't there
            if self.engine_path != self.path:
                check_same_shape(self._model_config, read_config(self.engine_path), self.engine_path)
            state = LearnerState(adapter=initial_adapter(self.path, lora, self.max_model_len), optimizer={})
        checkpoint = write_checkpoint(
            artifacts.checkpoints_dir, state, adapter_config(lora), {"base_model": self.name, "step": 0}
        )
        artifacts.push_checkpoint(checkpoint.digest)
        return checkpoint.digest

    def write_import(
        self, artifacts: Artifacts, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """Store an adapter in PEFT's files as a durable checkpoint without optimizer state, and return its digest.

        `about` becomes the manifest's metadata. No other checkpoint has the digest, so that this one can be deleted
        whatever becomes of others with the same weights. Raises AdapterError.
        """
        from tandem.rl.checkpoints import LearnerState, seal_checkpoint, write_sealed
        from tandem.rl.models.lora.adapter import adapter_config, adapter_shapes
        from tandem.rl.models.lora.importing import read_import

        adapter = read_import(config_file, weights_file, adapter_shapes(self.path, lora), lora)
        sealed = seal_checkpoint(LearnerState(adapter), adapter_config(lora), about, mark=uuid.uuid4().hex)
        checkpoint = write_sealed(artifacts.checkpoints_dir, sealed)
        artifacts.push_checkpoint(checkpoint.digest)
        return checkpoint.digest
