"""The table of docs/gpus.md is what the memory plan says of the public models."""

import pytest
from gpu_fit import PAGE, PUBLIC, geometry, with_table


def test_the_page_has_the_table_of_the_plan():
    page = PAGE.read_text()
    assert with_table(page) == page, "run benchmarks/gpu_fit.py"
    assert all(page.count(f"| {model} |") == 2 for model in PUBLIC)


@pytest.mark.parametrize(
    ("model", "billions"),
    [
        ("Qwen3-4B", 4.02),
        ("Qwen3-8B", 8.19),
        ("Qwen3-14B", 14.77),
        ("Qwen3-32B", 32.76),
        ("Llama-3.3-70B", 70.55),
        ("Qwen3-30B-A3B", 30.53),
    ],
)
def test_public_models_have_their_published_numbers_of_parameters(model, billions):
    assert round(geometry(model).num_parameters / 1e9, 2) == billions
