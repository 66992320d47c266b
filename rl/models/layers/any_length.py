"""Compile once for rows of every length, so that a learner compiles when it starts and never inside a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.fx.experimental import _config as symbolic_shapes

Function = TypeVar("Function", bound=Callable[..., object])


def compile_for_any_length(function: Function, fullgraph: bool = False, backend: str = "inductor") -> Function:
    """Return the function, compiled with symbolic sizes.

    Torch takes sizes that are equal at the first call for equal always: with a row of 64 tokens and 64 features it
    would compile again for every other length. So that is switched off, for the whole process.
    """
    symbolic_shapes.use_duck_shape = False
    compiled: Any = torch.compile(function, dynamic=True, fullgraph=fullgraph, backend=backend)
    return cast(Function, compiled)
