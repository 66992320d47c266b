"""How many processes, and GPUs, an engine replica has."""

import pytest
from pydantic import ValidationError

from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.setup.parallelism import num_processes


@pytest.mark.parametrize(
    ("tensor_parallel_size", "extra_args", "expected"),
    [
        (1, (), 1),
        (4, ("--max-num-seqs", "7"), 4),
        (2, ("--pipeline-parallel-size=3",), 6),
        (2, ("--pipeline_parallel_size", "3", "-dp", "2"), 12),
        (1, ("-pp=2", "--prefill-context-parallel-size", "2", "--decode-context-parallel-size", "2"), 4),
    ],
)
def test_processes_are_the_product_of_all_sizes(tensor_parallel_size, extra_args, expected):
    assert num_processes(tensor_parallel_size, extra_args) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_args": ("-tp", "2")},
        {"extra_args": ("--distributed_executor_backend=ray",)},
        {"extra_args": ("-pp=x",), "num_gpus": 2},
        {"extra_args": ("-pp", "2")},  # how many GPUs isn't said
        {"extra_args": ("-pp", "2"), "num_gpus": 1},
        {"tensor_parallel_size": 2, "num_gpus": 1},
        {"tensor_parallel_size": 2, "num_gpus": 0.5},
    ],
)
def test_what_contradicts_the_number_of_gpus_is_refused(settings):
    with pytest.raises(ValidationError):
        EngineConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"extra_args": ("-pp", "2"), "num_gpus": 2},
        {"extra_args": ("-pp", "2"), "num_gpus": 0},
        {"tensor_parallel_size": 2},
        {"tensor_parallel_size": 2, "num_gpus": 2},
        {"num_gpus": 0.5},
    ],
)
def test_what_fits_the_number_of_gpus_is_taken(settings):
    EngineConfig(**settings)
