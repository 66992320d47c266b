"""What vLLM needs to serve the text of a multimodal model: its classes without torchvision, the dtype of its head.

vLLM's classes of such models import image processors of transformers, which import torchvision. Tandem's installation
leaves it out, because it must be the build that belongs to torch. No image is accepted (`--language-model-only`), so
nothing of it is ever called: while vLLM imports a model, a package without content stands in its place.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

NAME = "torchvision"
MODULES = (
    NAME, f"{NAME}.io", f"{NAME}.ops", f"{NAME}.ops.boxes", f"{NAME}.transforms", f"{NAME}.transforms.functional",
    f"{NAME}.transforms.v2", f"{NAME}.transforms.v2.functional",
)  # fmt: skip
"""What transformers and vLLM import of it, and the packages of that."""

HEAD = "head_dtype"


class Absent:
    """A name of torchvision. Its own names are absent too, so defaults and annotations can refer to them."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, name: str) -> Absent:
        return _absent(f"{self._name}.{name}")

    def __or__(self, other: Any) -> Absent:
        return self

    __ror__ = __or__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError(
            f"{self._name} was called, but torchvision isn't installed: engines serve text alone.", name=NAME
        )


class _AbsentModule(ModuleType):
    def __init__(self, name: str):
        super().__init__(name)
        self.__path__: list[str] = []
        self.__spec__ = ModuleSpec(name, None, is_package=True)

    def __getattr__(self, name: str) -> Absent:
        return _absent(f"{self.__name__}.{name}")


def _absent(name: str) -> Absent:
    if name.rpartition(".")[2].startswith("__"):  # those that Python itself asks for
        raise AttributeError(name)
    return Absent(name)


@contextmanager
def torchvision_absent() -> Iterator[None]:
    """In the block, modules that import torchvision can be imported. It must not be installed."""
    from transformers.utils.import_utils import is_torchvision_available, is_torchvision_v2_available

    assert not is_torchvision_available() and not is_torchvision_v2_available()  # kept: transformers asks once
    modules = {name: _AbsentModule(name) for name in MODULES}
    for name, module in modules.items():
        parent, _, own_name = name.rpartition(".")
        if parent:
            setattr(modules[parent], own_name, module)
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in MODULES:
            sys.modules.pop(name, None)


def import_models_without_torchvision() -> None:
    """Have vLLM's registry import models under `torchvision_absent`, in this process. Repeats are harmless.

    By itself, vLLM starts another process, which this doesn't reach, to import a model and see what it supports. So
    models are then inspected here. Where torchvision is installed, vLLM stays as released.
    """
    from vllm.model_executor.models import registry

    model: Any = registry._LazyRegisteredModel
    if hasattr(model, "import_as_released") or find_spec(NAME) is not None:
        return
    model.import_as_released = model.load_model_cls

    def load_model_cls(self: Any) -> Any:
        with torchvision_absent():
            return self.import_as_released()

    def inspect_model_cls(self: Any) -> Any:
        return registry._ModelInfo.from_model_cls(self.load_model_cls())

    model.load_model_cls, model.inspect_model_cls = load_model_cls, inspect_model_cls


def override_text_part(overrides: dict[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return vLLM's overrides of a configuration with the dtype of the head also for the language model in it.

    vLLM builds a language model from its own part of a multimodal model's configuration, and so its head.
    """
    text = config.get_text_config()
    if HEAD not in overrides or text is config:
        return overrides
    name = next(name for name, value in vars(config).items() if value is text)
    return overrides | {name: {HEAD: overrides[HEAD], **overrides.get(name, {})}}
