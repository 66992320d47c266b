"""Runs a function on several ranks. They fork from one process that has imported torch and the learner, once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

MODULES = ["tandem.rl.learner", "peft"]


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], count: int = 2) -> None:
    """Call `function(rank, *arguments)` in a process for each rank. Raise what one of them raises."""
    mp.get_context("forkserver").set_forkserver_preload(MODULES)
    mp.start_processes(function, arguments, count, start_method="forkserver")
