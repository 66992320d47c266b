"""The configuration of a base model's learners."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tandem.cluster.config.values import Amount, Device, Dtype
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.settings import Settings


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
        "Unset: on for CUDA only, off for sharded layers and linear attention. On a CPU it gains nothing.",
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
