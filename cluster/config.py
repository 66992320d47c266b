"""What runs where: the configuration of a Tandem service, from a YAML file and `TANDEM_*` environment variables.

Importing this module needs neither torch nor vLLM, so the command line stays quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from tandem.rl.settings import LoraSettings, OptimizerSettings, Settings

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16"]


class LearnersConfig(Settings):
    """The learner group of a base model: N actors in one torch.distributed group."""

    count: int = Field(1, ge=1, le=1024, description="Number of learner actors.")
    device: Device = "auto"
    dtype: Dtype = Field(
        "auto", description="Of the frozen base weights: float32 on a CPU, bfloat16 on CUDA. LoRA is always float32."
    )
    attention: Literal["auto", "sdpa", "eager", "flex_attention"] = Field(
        "auto", description="auto: sdpa on a CPU, flex_attention on CUDA."
    )
    gradient_checkpointing: bool | None = Field(None, description="Unset: on for CUDA, off for a CPU.")
    sequences_per_step: int | None = Field(
        None, ge=1, description="Packed sequences of one gradient step, over all learners. Unset: one per learner."
    )
    num_cpus: float = Field(1, ge=0, description="Ray CPUs of each learner.")
    num_gpus: float | None = Field(
        None, ge=0, description="Ray GPUs of each learner; a fraction shares a GPU. Unset: by what the cluster has."
    )
    num_threads: int | None = Field(
        None, ge=1, description="Torch threads of each learner. Unset: num_cpus, at least 1."
    )
    kept_state_bytes: int = Field(
        2 << 30,
        ge=0,
        description="Main memory of each learner for other models' adapters and optimizer states, which then needn't "
        "be read from their checkpoints when those models are trained again.",
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"


class EngineConfig(Settings):
    """The vLLM engine of a base model."""

    replicas: int = Field(1, ge=1, le=256)
    max_replicas_per_node: int | None = Field(
        None,
        ge=1,
        le=100,
        description="When a node is lost, more than these wait for another, rather than take the room of its learners.",
    )
    dtype: Dtype = "auto"
    max_num_seqs: int = Field(64, ge=1, description="Sequences decoded together.")
    max_loras: int = Field(4, ge=2, description="Policy versions that run in one batch.")
    max_cpu_loras: int = Field(16, ge=2, description="Policy versions kept loaded; others load again on demand.")
    kv_cache_memory_bytes: int | None = Field(None, ge=1 << 20, description="Unset: from gpu_memory_utilization.")
    gpu_memory_utilization: float | None = Field(None, gt=0, le=1)
    tool_call_parser: str = Field("hermes", description="vLLM's parser for tool calls of this model family.")
    num_cpus: float = Field(1, ge=0, description="Ray CPUs of each replica.")
    num_gpus: float | None = Field(None, ge=0, description="Ray GPUs of each replica. Unset: by what the cluster has.")
    extra_args: tuple[str, ...] = Field((), description="Further arguments of `vllm serve`, as on its command line.")


class LogprobsConfig(Settings):
    """Who computes the old and reference logprobs that jobs ask for, and how closely the two must agree."""

    mode: Literal["auto", "shared", "learner", "engine"] = Field(
        "auto",
        description="auto: shared, unless the engine would compute shared prompts too often to be of help. "
        "engine: learners only check it, and take over when no engine works.",
    )
    chunk_tokens: int = Field(8192, ge=1, description="Tokens that are handed out together; at least one row is.")
    sample_fraction: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Of the chunks, scored by both to be compared: at least one, or none if this is 0.",
    )
    tolerance_float32: float = Field(
        1e-3, gt=0, description="Largest difference of a trained token's logprob; beyond it, learners score everything."
    )
    tolerance_bfloat16: float = Field(0.1, gt=0, description="The same where learners or engine compute in bfloat16.")
    takeover_s: float = Field(
        10, gt=0, description="A chunk that is out for longer, and for twice what it should take, is given out again."
    )


class BaseModelConfig(Settings):
    """A base model, and the learners and engine that serve every model registered on it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$", description="What clients send as base_model.")
    path: str = Field(description="A Hugging Face id, a local directory, or builtin:tiny.")
    max_model_len: int | None = Field(
        None, ge=16, description="Longest sequence in tokens. Unset: the model's own limit."
    )
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    learners: LearnersConfig = LearnersConfig()
    engine: EngineConfig = EngineConfig()
    logprobs: LogprobsConfig = LogprobsConfig()

    @property
    def logprob_tolerance(self) -> float:
        """By the less precise dtype of the two that `placement.place` has given their devices."""
        on_gpu = {"learners": self.learners.num_gpus and self.learners.device != "cpu", "engine": self.engine.num_gpus}
        dtypes = {"learners": self.learners.dtype, "engine": self.engine.dtype}
        is_half = any(dtype == "bfloat16" or (dtype == "auto" and on_gpu[who]) for who, dtype in dtypes.items())
        return self.logprobs.tolerance_bfloat16 if is_half else self.logprobs.tolerance_float32


class HttpConfig(Settings):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    api_replicas: int = Field(1, ge=1, le=256)


class LimitsConfig(Settings):
    """What the service takes before it says no: 413 for a body, 429 for a queue, 507 for a disk."""

    max_payload_bytes: int = Field(1 << 30, ge=1, description="Of trajectory groups in one request, unpacked.")
    max_request_bytes: int = Field(32 << 20, ge=1, description="Of any other request, unpacked.")
    max_open_jobs: int = Field(1000, ge=1, description="Jobs that wait or run, of all projects together.")
    max_open_jobs_per_project: int = Field(100, ge=1, description="Jobs that wait or run, of one project.")
    min_free_disk_bytes: int = Field(
        1 << 30, ge=0, description="With less left where artifacts are kept, no jobs are accepted."
    )


class DeadlinesConfig(Settings):
    """How long each stage of a job may take, in seconds. A stage past its deadline fails or is tried again."""

    start_engine_s: float = Field(600, gt=0)
    engine_answer_s: float = Field(
        60, gt=0, description="Silence of an engine's core after which it is replaced; at least its longest step."
    )
    start_learners_s: float = Field(600, gt=0)
    prepare_s: float = Field(600, gt=0, description="From a stored payload to packed sequences; at a start, version 0.")
    load_s: float = Field(300, gt=0)
    score_s: float = Field(1800, gt=0, description="Old or reference logprobs of a whole job.")
    step_s: float = Field(900, gt=0, description="One gradient step.")
    checkpoint_s: float = Field(600, gt=0)
    publish_s: float = Field(60, gt=0, description="Recording a new version, while the store doesn't answer.")
    receive_s: float = Field(60, gt=0, description="Silence of a client in the middle of sending a request.")
    inference_s: float = Field(600, gt=0, description="From an inference request's arrival to its last token.")


class CoordinatorConfig(Settings):
    poll_s: float = Field(0.4, gt=0, description="How often the coordinator looks for a queued job.")
    lease_s: float = Field(30, gt=0, description="A claim that isn't renewed for this long may be taken over.")
    max_attempts: int = Field(3, ge=1, description="Attempts of a job whose learners died or missed a deadline.")
    stop_grace_s: float = Field(
        30, ge=0, description="How long a running job may go on when the service ends; then it is handed back."
    )


class ProjectConfig(Settings):
    """What a project (an entity of keys) may do beyond training through the API: where its jobs read and write, and
    whether they may run its own code."""

    run_code: bool = Field(
        False, description="Runs the project's programs on this cluster, as the user that the service runs as."
    )
    bucket_root: str | None = Field(
        None, description="fsspec URL below which /bucket/path and obs://bucket/path lie. Unset: a folder under home."
    )
    roots: tuple[str, ...] = Field(
        (), description="fsspec URLs below which its jobs may name s3://, file:// ... paths."
    )


class ResourceSpecConfig(Settings):
    """A size of worker that jobs can choose, beside those that are read from the cluster."""

    spec_id: int = Field(ge=1, le=2**31 - 1, description="One that the cluster's own specifications have is replaced.")
    spec_code: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    num_cpus: float = Field(gt=0)
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

    Values come from, in this order: arguments, `TANDEM_*` environment variables (`TANDEM_HTTP__PORT=9000`),
    the YAML file, the defaults.
    """

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(Path("~/.tandem"), description="Where the store and the artifacts live unless named.")
    base_models: Annotated[tuple[BaseModelConfig, ...], Field(min_length=1)] = (TINY,)
    store_url: str | None = Field(
        None,
        repr=False,
        description="sqlite:////path/to/file.db or postgresql://user:password@host/database. Unset: SQLite under home.",
    )
    artifacts: str | None = Field(
        None, repr=False, description="fsspec URL of checkpoints and payloads. Unset: a folder under home."
    )
    admin_key_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="Of a key that the service knows from its first start, as an admin of entity default; "
        "`tandem keys generate` makes one.",
    )
    http: HttpConfig = HttpConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    limits: LimitsConfig = LimitsConfig()
    projects: dict[str, ProjectConfig] = Field({}, description="By name; others have the defaults.")
    resource_specs: tuple[ResourceSpecConfig, ...] = ()

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        return home.expanduser().absolute()

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
        return self.store_url or f"sqlite:///{self.home / 'tandem.db'}"

    @property
    def artifacts_root(self) -> str:
        return self.artifacts or str(self.home / "artifacts")

    @property
    def runs_code(self) -> bool:
        """Whether any project may run programs of its own."""
        return any(project.run_code for project in self.projects.values())

    def base_model(self, name: str) -> BaseModelConfig:
        return next(base for base in self.base_models if base.name == name)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, object] | None = None) -> TandemConfig:
        """Reads a YAML file, or what one would hold, and the environment. Raises ValueError, which lists the faults."""
        is_file = isinstance(source, str | Path)
        if is_file and not Path(source).is_file():
            raise ValueError(f"There is no configuration file at {source}.")

        class FromSource(cls):
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                **_,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                if is_file:
                    return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, yaml_file=source)
                return init_settings, env_settings, InitSettingsSource(settings_cls, dict(source))

        try:
            loaded = cls() if source is None else FromSource()
        except ValidationError as error:
            faults = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            what = f"{source} " if is_file else "from the environment " if source is None else ""
            raise ValueError(f"The configuration {what}is not valid:\n{faults}") from None
        return cls.model_construct(**dict(loaded))
