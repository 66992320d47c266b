"""The engines that run boot files, in their installed versions."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version


@dataclass(frozen=True)
class AiEngine:
    """An engine as the API lists it. All run the boot file in this service's Python environment."""

    engine_id: int
    engine_type: int
    """The API family's number: 3 is Ray, 10 is PyTorch."""
    name: str
    distribution: str

    @property
    def version(self) -> str:
        """Its version and that of Python, in the family's form: Ray-2.60.0-python3.11."""
        python = ".".join(platform.python_version_tuple()[:2])
        return f"{self.name}-{version(self.distribution)}-python{python}"


ENGINES = {1: AiEngine(1, 3, "Ray", "ray"), 2: AiEngine(2, 10, "PyTorch", "torch")}
DEFAULT_ENGINE_ID = 1
