"""The configuration of a base model's engine."""

from __future__ import annotations

from pydantic import Field, model_validator

from tandem.cluster.config.values import Amount, Dtype
from tandem.cluster.engine.setup.parallelism import check_gpus
from tandem.rl.settings import Settings


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
