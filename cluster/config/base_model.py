"""The configuration of a base model: its parts, and what follows from them together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tandem.cluster.config.engine import EngineConfig
from tandem.cluster.config.learners import LearnersConfig
from tandem.cluster.config.values import Seconds, Tolerance
from tandem.rl.errors import LoraLimitError
from tandem.rl.settings import LoraSettings, OptimizerSettings, Settings


class LogprobsConfig(Settings):
    """How learners and engine share the computation of old and reference logprobs, and how closely they must agree."""

    mode: Literal["auto", "shared", "learner", "engine"] = Field(
        "auto",
        description="auto: shared, or learner if the engine would repeat shared prompts so often that it doesn't help. "
        "engine: learners only check a sample, and take over if no engine works.",
    )
    chunk_tokens: int = Field(
        8192, ge=1, description="Tokens per chunk of work; a chunk has at least one packed sequence."
    )
    sample_fraction: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Fraction of the chunks that both score, to compare them: at least one chunk, or none if 0.",
    )
    tolerance_float32: Tolerance = Field(
        1e-3,
        description="Largest accepted difference of a trained token's logprob; above it, learners score everything.",
    )
    tolerance_bfloat16: Tolerance = Field(0.1, description="The same if learners or engine compute in bfloat16.")
    takeover_s: Seconds = Field(
        10,
        gt=0,
        description="Seconds after which a chunk is assigned again, if it also takes twice as long as expected.",
    )


class LoraLimits(Settings):
    """What a model may ask for as its own LoRA settings, at its registration. The engine's slots have this size."""

    max_r: int | None = Field(None, ge=1, le=512, description="Highest rank. Unset: lora.r.")
    target_modules: tuple[str, ...] = Field(
        (), description="Modules that models may adapt beside those of lora.target_modules, by the same names."
    )


class BaseModelConfig(Settings):
    """A base model with the learners and the engine for every model registered on it."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$", description="Name that clients send as base_model."
    )
    path: str = Field(description="A Hugging Face id, a local directory, or builtin:tiny.")
    max_model_len: int | None = Field(
        None,
        ge=16,
        description="Longest sequence in tokens. Unset: the model's own limit, on GPUs at most 32,768.",
    )
    gpu_memory_bytes: int | None = Field(
        None, ge=1 << 30, description="Memory of each GPU, for the memory plan. Unset: asked of the GPU."
    )
    lora: LoraSettings = LoraSettings()
    lora_limits: LoraLimits = LoraLimits()
    optimizer: OptimizerSettings = OptimizerSettings()
    learners: LearnersConfig = LearnersConfig()
    engine: EngineConfig = EngineConfig()
    logprobs: LogprobsConfig = LogprobsConfig()

    @model_validator(mode="after")
    def _engine_can_score(self) -> BaseModelConfig:
        if self.engine.path is not None and self.logprobs.mode in ("shared", "engine"):
            raise ValueError(
                f"logprobs.mode {self.logprobs.mode} has the engine compute logprobs for training, but engine.path "
                "gives it other weights; set the mode to auto or learner."
            )
        if self.engine.sleep and self.logprobs.mode in ("shared", "engine"):
            raise ValueError(
                f"logprobs.mode {self.logprobs.mode} has the engine compute logprobs for training, but with "
                "engine.sleep it sleeps then; set the mode to auto or learner."
            )
        return self

    @model_validator(mode="after")
    def _own_settings_within_the_limits(self) -> BaseModelConfig:
        if self.lora_limits.max_r is not None and self.lora_limits.max_r < self.lora.r:
            raise ValueError(
                f"lora_limits.max_r {self.lora_limits.max_r} is below lora.r {self.lora.r}, the rank of models that "
                "ask for none; raise it or lower lora.r"
            )
        LoraSettings(target_modules=self.largest_lora.target_modules)  # which rejects some names
        return self

    @property
    def largest_lora(self) -> LoraSettings:
        """The highest rank and all modules that a model may have, for engines and for the memory plan."""
        limits, own = self.lora_limits, self.lora
        targets = tuple(dict.fromkeys((*own.target_modules, *limits.target_modules)))
        return own.model_copy(update={"r": max(own.r, limits.max_r or own.r), "target_modules": targets})

    def check_lora(self, lora: LoraSettings) -> None:
        """Raise LoraLimitError if a model may not have these settings."""
        largest = self.largest_lora
        if lora.r > largest.r:
            raise LoraLimitError(
                "r",
                f"rank {lora.r} is above {largest.r}, the limit of base model {self.name} (lora_limits.max_r in the "
                "service's configuration)",
            )
        if others := [name for name in lora.target_modules if name not in largest.target_modules]:
            raise LoraLimitError(
                "target_modules",
                f"{', '.join(others)} can't be adapted on base model {self.name}; it allows "
                f"{', '.join(largest.target_modules)} (lora_limits.target_modules in the service's configuration)",
            )

    @property
    def is_on_gpu(self) -> bool:
        """Whether learners or engine have GPUs; `placement.place` must have set num_gpus."""
        return bool(self.learners.num_gpus or self.engine.num_gpus)

    @property
    def trains_on(self) -> Literal["cpu", "cuda"]:
        """The kind of the learners' device; `placement.place` must have set num_gpus."""
        return "cuda" if self.learners.num_gpus and self.learners.device != "cpu" else "cpu"

    @property
    def num_scoring_engines(self) -> int:
        """Engines that may compute logprobs for training: none that sleep, or whose weights aren't the learners'."""
        return self.engine.replicas if self.engine.path is None and not self.engine.sleep else 0

    @property
    def least_precise_dtype(self) -> Literal["float32", "bfloat16", "quantized"]:
        """The less precise dtype of learners and engine; `placement.place` must have set num_gpus."""
        if self.engine.path is not None:
            return "quantized"
        on_gpu = {"learners": self.trains_on == "cuda", "engine": self.engine.num_gpus}
        dtypes = {"learners": self.learners.dtype, "engine": self.engine.dtype}
        is_half = any(dtype == "bfloat16" or (dtype == "auto" and on_gpu[part]) for part, dtype in dtypes.items())
        return "bfloat16" if is_half else "float32"

    @property
    def logprob_tolerance(self) -> float:
        """Tolerance for the less precise dtype of learners and engine."""
        is_half = self.least_precise_dtype != "float32"
        return self.logprobs.tolerance_bfloat16 if is_half else self.logprobs.tolerance_float32


TINY = BaseModelConfig(
    name="tandem/tiny",
    path="builtin:tiny",
    max_model_len=1024,
    lora_limits=LoraLimits(max_r=32),  # the default rank of clients of the Tinker API
    engine=EngineConfig(kv_cache_memory_bytes=64 << 20),
)
