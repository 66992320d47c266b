"""Prices, from which the ledger computes what jobs, models and keys cost."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tandem.rl.settings import Settings

Price = Annotated[float, Field(ge=0, le=1e9)]


class RatesConfig(Settings):
    """Prices per unit. An amount without a price costs nothing."""

    prompt_tokens_per_million: Price | None = Field(None, description="Prompt tokens that the engine computes.")
    cached_prompt_tokens_per_million: Price | None = Field(
        None, description="Prompt tokens that the engine's prefix cache has. Unset: as other prompt tokens."
    )
    sampled_tokens_per_million: Price | None = Field(None, description="Sampled tokens.")
    scored_tokens_per_million: Price | None = Field(
        None, description="Tokens whose logprobs learners or engines compute before a job's first step."
    )
    trained_tokens_per_million: Price | None = Field(
        None, description="Tokens of packed rows that gradient steps go through."
    )
    learner_second: Price | None = Field(None, description="A second of one learner.")
    engine_second: Price | None = Field(None, description="A second of an engine, shared by its requests.")
    cpu_second: Price | None = Field(None, description="A second of CPU time that prepares and leads jobs.")


class PricesConfig(RatesConfig):
    """Prices of all base models, and others for some. A change applies from the next start: it leaves earlier bills
    as they were."""

    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="ISO 4217 code, which the bill names.")
    base_models: dict[str, RatesConfig] = Field(
        {}, description="Prices by base model, in place of the others where they are set."
    )
