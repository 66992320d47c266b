"""The engines that boot files run with, in the versions that are installed."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class AiEngine:
    """An engine as the API lists it. Both run the boot file in this service's Python environment."""

    engine_id: int
    engine_type: int
    """As the API family numbers them: 3 is Ray, 10 is PyTorch."""
    name: str
    distribution: str

    @property
    def version(self) -> str:
        """With that of its Python interpreter, as the family writes it: Ray-2.60.0-python3.11."""
        import platform

        python = ".".join(platform.python_version_tuple()[:2])
        return f"{self.name}-{version(self.distribution)}-python{python}"


ENGINES = {1: AiEngine(1, 3, "Ray", "ray"), 2: AiEngine(2, 10, "PyTorch", "torch")}
