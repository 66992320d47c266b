"""Base models as the Tinker API shows and checks them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from tandem.rl.models.lora.parts import MLP_MODULES
from tandem.rl.settings import LoraSettings
from tandem.serve.api.services import Services
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.names import quoted


@dataclass(frozen=True)
class Sizes:
    vocabulary: int
    max_length: int
    """In tokens."""


class BaseModels:
    """The base models of the service. Thread-safe."""

    def __init__(self, services: Services):
        self._services = services
        self._sizes: dict[str, Sizes] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        return sorted(self._services.base_models)

    def check_name(self, name: str, field: str = "base_model") -> None:
        """Raise InvalidRequestError for a base model that this service doesn't have."""
        if name not in self._services.base_models:
            message = f"there is no base model {quoted(name)} here; this service has: {', '.join(self.names)}"
            raise InvalidRequestError([Problem(("body", field), message)], "base_model_not_found")

    def sizes(self, name: str) -> Sizes:
        """Return the sizes of a base model. The first call for it takes seconds. Raises StageError."""
        found = self._sizes.get(name)
        if found is None:
            with self._lock:
                found = self._sizes.get(name) or Sizes(*self._services.preparation.sizes(name))
                self._sizes[name] = found
        return found

    def lora_modules(self, name: str, train_attn: bool, train_mlp: bool) -> tuple[str, ...]:
        """Return the base model's own modules of these kinds."""
        wanted = {False: train_attn, True: train_mlp}
        modules = self._services.config.base_model(name).lora.target_modules
        return tuple(module for module in modules if wanted[module in MLP_MODULES])

    def check_lora(self, name: str, lora: LoraSettings) -> None:
        """Raise LoraLimitError for settings beyond the limits of the base model."""
        self._services.config.base_model(name).check_lora(lora)


def flags_of(lora: LoraSettings) -> dict[str, int | bool]:
    """Return what clients see of LoRA settings beside the rank. The output layer is never adapted."""
    modules = set(lora.target_modules)
    return {
        "seed": lora.seed,
        "train_mlp": bool(modules & MLP_MODULES),
        "train_attn": bool(modules - MLP_MODULES),
        "train_unembed": False,
    }
