"""Computes money from amounts and the prices at their time."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from tandem.cluster.config.prices import PricesConfig
from tandem.serve.store.ledger.amounts import Amounts

MILLION = Decimal(1_000_000)


def prices_content(prices: PricesConfig) -> dict[str, Any]:
    """Return prices as the store keeps them; empty if there are none."""
    content = prices.model_dump(mode="json", exclude_none=True)
    return content if set(content) - {"currency", "base_models"} or content["base_models"] else {}


def cost(amounts: Amounts, prices: Mapping[str, Any], base_model: str) -> Decimal:
    """Return what amounts cost, exactly. `prices` are a `PricesConfig` as JSON."""
    own = prices.get("base_models", {}).get(base_model, {})

    def price(name: str, default: str | None = None) -> Decimal:
        found = own.get(name, prices.get(name))
        if found is None and default is not None:
            return price(default)
        return Decimal(0) if found is None else Decimal(str(found))

    computed = amounts.prompt_tokens - amounts.cached_prompt_tokens
    tokens = (
        computed * price("prompt_tokens_per_million")
        + amounts.cached_prompt_tokens * price("cached_prompt_tokens_per_million", "prompt_tokens_per_million")
        + amounts.sampled_tokens * price("sampled_tokens_per_million")
        + (amounts.scored_tokens + amounts.engine_scored_tokens) * price("scored_tokens_per_million")
        + amounts.trained_tokens * price("trained_tokens_per_million")
    )
    seconds = (
        Decimal(str(amounts.learner_seconds)) * price("learner_second")
        + Decimal(str(amounts.engine_seconds)) * price("engine_second")
        + Decimal(str(amounts.cpu_seconds)) * price("cpu_second")
    )
    return tokens / MILLION + seconds
