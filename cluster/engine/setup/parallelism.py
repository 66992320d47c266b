"""The processes of an engine replica: tensor parallelism, and others that only vLLM's own arguments ask for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from math import prod

# vLLM's arguments that multiply the processes, and thereby the GPUs, of one engine.
MULTIPLIERS = {
    "--pipeline-parallel-size": "-pp",
    "--data-parallel-size": "-dp",
    "--prefill-context-parallel-size": "-pcp",
}


def num_processes(tensor_parallel_size: int, extra_args: Sequence[str]) -> int:
    """Return how many processes of a replica compute the model; on CUDA each has a GPU of its own.

    Raises ValueError for arguments of vLLM that contradict the configuration of the engine.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    for long, short in (*MULTIPLIERS.items(), ("--tensor-parallel-size", "-tp")):
        parser.add_argument(long, short, type=int)
    parser.add_argument("--distributed-executor-backend")
    found, _ = parser.parse_known_args([_with_dashes(argument) for argument in extra_args])
    if found.tensor_parallel_size is not None:
        raise ValueError("extra_args have --tensor-parallel-size; set engine.tensor_parallel_size instead.")
    if found.distributed_executor_backend == "ray":
        raise ValueError(
            "extra_args have --distributed-executor-backend ray, whose actors would find no GPU beside the replica "
            "that has them all; remove it."
        )
    sizes: list[int] = [getattr(found, long.removeprefix("--").replace("-", "_")) or 1 for long in MULTIPLIERS]
    return tensor_parallel_size * prod(sizes)


def check_gpus(tensor_parallel_size: int, extra_args: Sequence[str], num_gpus: float | None) -> None:
    """Raise ValueError unless each process of a replica on CUDA has one GPU."""
    wanted = num_processes(tensor_parallel_size, extra_args)
    if num_gpus is None and wanted > tensor_parallel_size:
        raise ValueError(
            f"extra_args make a replica start {wanted} processes, and on CUDA each needs a GPU; set engine.num_gpus to "
            f"{wanted}, or to 0 for CPUs."
        )
    if num_gpus and wanted > 1 and num_gpus != wanted:
        raise ValueError(
            f"engine.num_gpus is {num_gpus:g}, but the {wanted} processes of a replica need a GPU each; set it to "
            f"{wanted}, or change tensor_parallel_size."
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # argparse ends the process
        raise ValueError(f"extra_args can't be read: {message}.")


def _with_dashes(argument: str) -> str:
    """Return an argument as vLLM reads it, which takes `_` for `-` in names."""
    name, equals, value = argument.partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value
