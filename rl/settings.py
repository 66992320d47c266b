"""Settings of a policy's adapter and of its optimizer, one definition for configuration files and for code.

Importing this needs no torch, so the command line stays quick.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Settings(BaseModel):
    """Base of all settings: unknown fields are rejected, and values don't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LoraSettings(Settings):
    """LoRA (Hu et al. 2021, arXiv 2106.09685) on the named linear layers, without dropout."""

    r: int = Field(8, ge=1, le=512, description="Rank.")
    alpha: float = Field(16, gt=0, description="Scaling numerator: the update is scaled by alpha / r.")
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        min_length=1,
        description="Last parts of the names of the adapted modules; each must occur in the model.",
    )
    seed: int = Field(0, description="Seed of the A matrices of version 0 (its B matrices are zero).")

    @field_validator("target_modules")
    @classmethod
    def _inside_the_layers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # vLLM assigns adapters to rows of sampled tokens, which aren't the rows of prompt logprobs.
        if outside := [name for name in names if name in ("lm_head", "embed_tokens")]:
            raise ValueError(f"{', '.join(outside)} can't be adapted: prompts would get wrong logprobs. Remove it.")
        return names


class OptimizerSettings(Settings):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101); gradients are clipped before each step."""

    learning_rate: float = Field(5e-6, ge=0, description="Learning rate of jobs that set none.")
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    max_grad_norm: float = Field(0.1, gt=0, description="Gradients are clipped to this global L2 norm.")
