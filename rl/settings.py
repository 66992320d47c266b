"""Settings of a policy's adapter and of its optimizer, one definition for configuration files and for code.

Importing this needs no torch, so the command line stays quick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_LEARNING_RATE = 1.0
"""AdamW moves every weight by about the learning rate in each step; the weights of an adapter are far below 1."""
Beta = Annotated[float, Field(ge=0, lt=1)]


class Settings(BaseModel):
    """Base of all settings: unknown fields and numbers that aren't finite are rejected, and values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class LoraSettings(Settings):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on the named linear layers, without dropout."""

    r: int = Field(8, ge=1, le=512, description="Rank.")
    alpha: float = Field(
        16, gt=0, le=65536, description="Scaling numerator: the update is scaled by alpha / r. At most 65536."
    )
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Last parts of the names of the adapted modules; each must occur in the model. `experts` adapts "
        "the routed experts of a mixture, which no other name includes.",
    )
    seed: int = Field(
        0,
        ge=-(2**63),
        lt=2**63,
        description="Seed of the A matrices of version 0 (its B matrices are zero), a 64-bit integer.",
    )

    @field_validator("target_modules")
    @classmethod
    def _inside_the_layers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # vLLM assigns adapters to rows of sampled tokens, which aren't the rows of prompt logprobs.
        if outside := [name for name in names if name in ("lm_head", "embed_tokens")]:
            raise ValueError(f"{', '.join(outside)} can't be adapted: prompts would get wrong logprobs. Remove it.")
        return names

    def fits(self, other: LoraSettings) -> bool:
        """Return whether adapters of both have the same tensors and the same scale. Seed and order don't matter."""
        return (self.r, self.alpha, set(self.target_modules)) == (other.r, other.alpha, set(other.target_modules))

    def __str__(self) -> str:
        return f"r {self.r}, alpha {self.alpha:g}, target_modules {', '.join(self.target_modules)}"


@dataclass(frozen=True)
class UpdateRule:
    """Settings of the optimizer that a kind of job fixes, in place of the base model's."""

    weight_decay: float
    max_grad_norm: float


class OptimizerSettings(Settings):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); gradients are clipped before each step."""

    learning_rate: float = Field(
        5e-6,
        ge=0,
        le=MAX_LEARNING_RATE,
        description="Learning rate of jobs that set none. At most 1: AdamW moves every weight by about as much.",
    )
    betas: tuple[Beta, Beta] = Field(
        (0.9, 0.99), description="Decay rates of the gradient's mean and square; 0 or more and less than 1."
    )
    eps: float = Field(
        1e-8, ge=1e-30, le=1, description="Added to the root of the squares; 1e-30 to 1, because float32 has no less."
    )
    weight_decay: float = Field(
        0.1,
        ge=0,
        le=100,
        description="Each step multiplies the weights by 1 - learning_rate * weight_decay. At most 100.",
    )
    max_grad_norm: float = Field(
        0.1,
        gt=0,
        le=1e12,
        description="Gradients are clipped to this global L2 norm. At most 1e12, whose square float32 holds.",
    )


class AdamStep(Settings):
    """One optimizer step of a training loop that isn't ours: every number of AdamW, which may differ in each step."""

    learning_rate: float = Field(1e-4, ge=0, le=1e3)
    beta1: Beta = Field(0.9, description="Decay rate of the gradient's mean.")
    beta2: Beta = Field(0.95, description="Decay rate of the gradient's square.")
    eps: float = Field(1e-12, ge=1e-30, le=1, description="Added to the root of the squares; float32 has no less.")
    weight_decay: float = Field(
        0.0, ge=0, le=1e3, description="The step multiplies the weights by 1 - learning_rate * weight_decay."
    )
    grad_clip_norm: float = Field(
        0.0, ge=0, le=1e30, description="The summed gradient is clipped to this global L2 norm; 0: it isn't clipped."
    )
