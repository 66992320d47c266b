"""The configuration of a Tandem service, from a YAML file and `TANDEM_*` environment variables.

Importing this module loads neither torch nor vLLM, so the command line stays quick.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tandem.cluster.engine.parallelism import check_gpus
from tandem.cluster.sqlite_urls import sqlite_url
from tandem.rl.errors import LoraLimitError
from tandem.rl.settings import LoraSettings, OptimizerSettings, Settings
from tandem.rl.step_size import StepSize
from tandem.rl.yaml_files import load_mapping

Device = Literal["auto", "cpu", "cuda"]
MAX_S = 31 * 86400
"""A month. Longer durations are mistakes, and far longer ones overflow the timers of libraries."""
Dtype = Literal["auto", "float32", "bfloat16"]
Seconds = Annotated[float, Field(le=MAX_S)]
Amount = Annotated[float, Field(le=1e5)]
Tolerance = Annotated[float, Field(gt=0, le=100)]


class LearnersConfig(Settings):
    """The learner group of a base model: `count` actors in one torch.distributed group."""

    count: int = Field(1, ge=1, le=1024, description="Number of learner actors.")
    shard: int = Field(
        1,
        ge=1,
        description="Learners that hold one copy of the frozen base weights together, each a part of every layer; it "
        "divides count. 1: each learner holds all of them.",
    )
    device: Device = "auto"
    dtype: Dtype = Field(
        "auto",
        description="Dtype of the frozen base weights; auto: float32 on a CPU, bfloat16 on CUDA. LoRA stays float32.",
    )
    attention: Literal["auto", "segments", "sdpa", "eager", "flex_attention"] = Field(
        "auto", description="Attention implementation; auto: segments on a CPU, flex_attention on CUDA."
    )
    gradient_checkpointing: bool | None = Field(
        None, description="Recompute activations in the backward pass to save memory. Unset: on for CUDA only."
    )
    compile: bool | None = Field(
        None,
        description="Let torch compile the decoder layers when the learners start, which fuses their small operations. "
        "Unset: on for CUDA only, off for sharded layers and linear attention.",
    )
    sequences_per_step: int | None = Field(
        None,
        ge=1,
        description="Packed sequences per gradient step, over all learners. Unset: one per learner, so that more "
        "learners take fewer, bigger steps.",
    )
    tokens_per_step: Annotated[int, Field(ge=1)] | Literal["job"] | None = Field(
        None,
        description="Trained tokens per gradient step, over all learners, instead of sequences_per_step: a step takes "
        "packed sequences until they have as many, whatever the number of learners. job: a job is one step.",
    )
    num_cpus: Amount = Field(1, ge=0, description="Ray CPUs of each learner.")
    num_gpus: Amount | None = Field(
        None, ge=0, description="Ray GPUs of each learner; below 1, it may share one with an engine. Unset: derived."
    )
    num_threads: int | None = Field(
        None, ge=1, description="Torch threads of each learner. Unset: num_cpus, at least 1."
    )
    kept_state_bytes: int = Field(
        2 << 30,
        ge=0,
        description="Main memory of each learner that caches adapters and optimizer states of other models, so that "
        "they aren't read from their checkpoints again.",
    )
    kept_device_bytes: int = Field(
        256 << 20, ge=0, description="The part of that cache that stays on a GPU: the states of the most recent models."
    )
    jobs_at_once: int = Field(
        8,
        ge=1,
        le=256,
        description="Jobs of different models that share the learners: they take turns between gradient steps, and one "
        "is prepared or published while another one trains.",
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="Ray placement strategy of the learners."
    )

    @model_validator(mode="after")
    def _whole_copies(self) -> LearnersConfig:
        if self.count % self.shard:
            raise ValueError(
                f"shard {self.shard} doesn't divide count {self.count}; learners hold whole copies of the base model, "
                f"so set count to a multiple of {self.shard}"
            )
        if self.shard > 1 and self.compile:
            raise ValueError(
                "compile isn't supported for layers that several learners share; leave it out, or set shard to 1"
            )
        return self

    @model_validator(mode="after")
    def _one_size_of_steps(self) -> LearnersConfig:
        if self.sequences_per_step is not None and self.tokens_per_step is not None:
            raise ValueError(
                "sequences_per_step and tokens_per_step both set the size of a gradient step; remove one of them"
            )
        return self

    @property
    def step_size(self) -> StepSize:
        """The packed sequences of one gradient step, over all learners."""
        if self.tokens_per_step is not None:
            return StepSize(tokens=None if self.tokens_per_step == "job" else self.tokens_per_step)
        return StepSize(rows=self.sequences_per_step or self.count)


class EngineConfig(Settings):
    """The vLLM engine of a base model."""

    path: str | None = Field(
        None,
        description="Weights to serve instead of those of the base model's path: the same model in other precision, "
        "such as FP8. Unset: the same weights.",
    )
    replicas: int = Field(1, ge=1, le=256, description="Engine replicas, each with the whole base model.")
    max_replicas_per_node: int | None = Field(
        None,
        ge=1,
        le=100,
        description="Most replicas on one node. When a node is lost, the others wait for a new node instead of taking "
        "the place of learners.",
    )
    dtype: Dtype = Field("auto", description="Dtype of the base weights; auto: float32 on a CPU, bfloat16 on CUDA.")
    tensor_parallel_size: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes of each replica, each with a part of every weight: on CUDA as many GPUs of one node.",
    )
    max_num_seqs: int | None = Field(
        None, ge=1, description="Most sequences decoded together. Unset: 64 on a CPU, vLLM's own default on a GPU."
    )
    max_loras: int | None = Field(
        None, ge=2, description="Most policy versions in one batch. Unset: 4, or 8 on a GPU that has room for them."
    )
    max_cpu_loras: int = Field(16, ge=2, description="Policy versions kept loaded; others are loaded on demand.")
    kv_cache_memory_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="Size of the KV cache. Unset: what the memory plan leaves on a GPU that learners share, from "
        "gpu_memory_utilization on others, 1 GiB on a CPU.",
    )
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Fraction of a GPU's memory for the engine. Unset: from the memory plan."
    )
    sleep: bool = Field(
        False,
        description="Let the engine sleep while learners train beside it: its GPU's memory is theirs then, completions "
        "wait, and running ones end before. For runs that sample only between jobs. On a CPU it frees no memory.",
    )
    tool_call_parser: str = Field("hermes", description="vLLM's parser for the tool calls of this model family.")
    num_cpus: Amount = Field(1, ge=0, description="Ray CPUs of each replica.")
    num_gpus: Amount | None = Field(
        None, ge=0, description="Ray GPUs of each replica; below 1, it may share one with a learner. Unset: derived."
    )
    extra_args: tuple[str, ...] = Field((), description="More arguments of `vllm serve`; they override the others.")

    @model_validator(mode="after")
    def _gpus_for_all_processes(self) -> EngineConfig:
        check_gpus(self.tensor_parallel_size, self.extra_args, self.num_gpus)
        return self


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


class HttpConfig(Settings):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535)
    api_replicas: int = Field(1, ge=1, le=256, description="Processes that serve the API.")


class LimitsConfig(Settings):
    """Limits beyond which requests are rejected: 413 for a body, 429 for a full queue, 507 for a nearly full disk."""

    max_payload_bytes: int = Field(
        1 << 30, ge=1, description="Decompressed size of a request with trajectory groups, or of an uploaded file."
    )
    max_dataset_bytes: int = Field(1 << 30, ge=1, description="Decompressed size of an uploaded dataset.")
    max_request_bytes: int = Field(32 << 20, ge=1, description="Decompressed size of any other request.")
    max_adapter_bytes: int = Field(4 << 30, ge=1, description="Decompressed size of an adapter that is imported.")
    max_open_jobs: int = Field(1000, ge=1, description="Queued and running jobs of all projects together.")
    max_open_jobs_per_project: int = Field(100, ge=1, description="Queued and running jobs of one project.")
    repeated_body_s: Seconds = Field(
        60,
        ge=0,
        description="A body that the same key posts again within this time, without an Idempotency-Key, while its job "
        "is queued or running, gets that job instead of a new one. 0: every post makes a job.",
    )
    min_free_disk_bytes: int = Field(
        1 << 30, ge=0, description="Free space on the disk of the artifacts below which jobs are rejected."
    )


class DeadlinesConfig(Settings):
    """Deadlines in seconds. A stage of a job that exceeds its deadline fails or is retried."""

    start_engine_s: Seconds = Field(600, gt=0, description="Start of an engine.")
    engine_answer_s: Seconds = Field(
        60,
        gt=0,
        description="An engine whose core doesn't answer for this long is replaced; must exceed its longest step.",
    )
    start_learners_s: Seconds = Field(600, gt=0, description="Start of a learner group.")
    prepare_s: Seconds = Field(
        600, gt=0, description="From a stored payload to packed sequences; also writing version 0."
    )
    load_s: Seconds = Field(300, gt=0, description="Loading a policy version into the learners.")
    score_s: Seconds = Field(1800, gt=0, description="Old or reference logprobs of a whole job.")
    step_s: Seconds = Field(900, gt=0, description="One gradient step.")
    step_progress_s: Seconds = Field(
        60,
        gt=0,
        description="A learner that makes no progress in a gradient step for this long, and for ten times the usual "
        "time of the row in work, is replaced. Ten times as long for its first rows.",
    )
    checkpoint_s: Seconds = Field(600, gt=0, description="Writing and uploading a checkpoint.")
    publish_s: Seconds = Field(60, gt=0, description="Recording a new version while the store doesn't answer.")
    receive_s: Seconds = Field(
        60, gt=0, description="A client that pauses for this long in the middle of a request is disconnected."
    )
    inference_s: Seconds = Field(600, gt=0, description="From the arrival of an inference request to its last token.")


class RetentionConfig(Settings):
    """What is kept of each model's versions. `tandem retention` shows what would be deleted, with sizes.

    The newest version stays always, and so does all that a queued or running job needs.
    """

    keep_versions: int | None = Field(
        None, ge=1, description="Newest versions of each model that stay; older ones are deleted. Unset: all stay."
    )
    keep_optimizer: int | None = Field(
        None,
        ge=1,
        description="Newest versions of each model that keep their optimizer state, two thirds of a checkpoint. A "
        "version without it still answers requests; training that starts from it begins with a new optimizer. "
        "Unset: all keep it.",
    )


class CoordinatorConfig(Settings):
    """The coordinator, which runs the jobs."""

    poll_s: Seconds = Field(
        0.4, gt=0, description="How often the coordinator looks for a queued job. With SQLite it notices one sooner."
    )
    lease_s: Seconds = Field(
        30, gt=0, description="Another coordinator may take over a job whose claim wasn't renewed for this long."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts to run a job whose learners die or miss a deadline.")
    stop_grace_s: Seconds = Field(
        30, ge=0, description="Time for running jobs to finish at a shutdown; then they are queued again."
    )


class ProjectConfig(Settings):
    """Rights of a project (the entity of its keys) beyond training: its storage, and whether its jobs run its code."""

    run_code: bool = Field(
        False, description="Allow jobs to run the project's programs on this cluster, as the user of the service."
    )
    bucket_root: str | None = Field(
        None, description="fsspec URL below which /bucket/path and obs://bucket/path lie. Unset: a folder under home."
    )
    roots: tuple[str, ...] = Field(
        (), description="fsspec URLs; jobs may name s3://, file:// and other paths below them."
    )


class ResourceSpecConfig(Settings):
    """A worker size that jobs can choose, in addition to those derived from the cluster."""

    spec_id: int = Field(
        ge=1, le=2**31 - 1, description="Id; replaces a size derived from the cluster that has the same id."
    )
    spec_code: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    num_cpus: Amount = Field(gt=0)
    num_gpus: int = Field(0, ge=0)
    gpu_type: str = ""
    max_num: int = Field(ge=1, description="Most workers of this size in one job.")


TINY = BaseModelConfig(
    name="tandem/tiny",
    path="builtin:tiny",
    max_model_len=1024,
    engine=EngineConfig(kv_cache_memory_bytes=64 << 20),
)


class TandemConfig(BaseSettings):
    """The whole service. Without a file: the built-in tiny model on this machine's CPU.

    Values come from these sources, the first wins: arguments, `TANDEM_*` environment variables
    (`TANDEM_HTTP__PORT=9000`), the YAML file, the defaults.
    """

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(Path("~/.tandem"), description="Directory of the store and the artifacts, unless these are set.")
    base_models: Annotated[tuple[BaseModelConfig, ...], Field(min_length=1)] = (TINY,)
    store_url: str | None = Field(
        None,
        repr=False,
        description="Database: sqlite:////path/to/file.db or postgresql://user:password@host/database. "
        "Unset: SQLite under home.",
    )
    artifacts: str | None = Field(
        None, repr=False, description="fsspec URL of checkpoints and payloads. Unset: a folder under home."
    )
    admin_key_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of an admin key of entity default that is valid from the first start; "
        "`tandem keys generate` prints both.",
    )
    http: HttpConfig = HttpConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    limits: LimitsConfig = LimitsConfig()
    retention: RetentionConfig = RetentionConfig()
    projects: dict[str, ProjectConfig] = Field({}, description="Projects by name; all others have the defaults.")
    resource_specs: tuple[ResourceSpecConfig, ...] = ()

    @field_validator("home", mode="before")
    @classmethod
    def _named(cls, home: object) -> object:
        if isinstance(home, str) and not home.strip():
            raise ValueError("it names no directory; write one, or unset TANDEM_HOME for ~/.tandem")
        return home

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        try:
            return home.expanduser().absolute()
        except RuntimeError:  # the user has no home directory
            raise ValueError(f"{home} needs a home directory; set HOME, or TANDEM_HOME to an absolute path") from None

    @model_validator(mode="after")
    def _distinct_base_models(self) -> TandemConfig:
        names = [base.name for base in self.base_models]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"base_models has {', '.join(duplicates)} more than once; give each base model its own name."
            )
        return self

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or sqlite_url(self.home / "tandem.db")

    @property
    def artifacts_root(self) -> str:
        return self.artifacts or str(self.home / "artifacts")

    @property
    def runs_code(self) -> bool:
        """True if any project may run its own programs."""
        return any(project.run_code for project in self.projects.values())

    def base_model(self, name: str) -> BaseModelConfig:
        """Return the base model of that name, which must be configured."""
        return next(base for base in self.base_models if base.name == name)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, object] | None = None) -> TandemConfig:
        """Read a YAML file or an equal mapping, and the environment. Raises ValueError that lists all faults."""
        if isinstance(source, str | Path) and not os.path.exists(source):
            raise ValueError(f"There is no configuration file at {source}.")
        fields = load_mapping(source) if isinstance(source, str | Path) else source
        try:
            loaded = cls() if fields is None else _reading(fields)()
        except ValidationError as error:
            faults = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            origin = (
                "from the environment " if source is None else f"{source} " if isinstance(source, str | Path) else ""
            )
            raise ValueError(f"The configuration {origin}is not valid:\n{faults}") from None
        return cls.model_construct(**dict(loaded))


def _reading(source: Mapping[str, object]) -> type[TandemConfig]:
    """Return the configuration's class with `source` as a source below the environment."""

    class FromSource(TandemConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, dict(source))

    return FromSource
