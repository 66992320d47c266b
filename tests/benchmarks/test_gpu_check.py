"""The check of a GPU, at toy size on the CPU, and what it does with parts that fail."""

import json
import time

import gpu_check
import pytest
import torch
from gpu_checks.rows import awkward, group_row, logical_tokens, row_of, seen_keys
from gpu_checks.setting import QWEN3_0_6B, QWEN3_4B, SIZES, Setting, Shape
from gpu_checks.speed import step_flops

from tandem.rl.models.attention.masks import dense_mask
from tandem.rl.packed_rows import segments_of


def test_every_part_passes_at_toy_size(tmp_path):
    output = tmp_path / "check.json"
    assert gpu_check.main(["--device", "cpu", "--size", "toy", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    parts = result["parts"]
    assert list(parts) == list(gpu_check.PARTS)
    assert all(part["passed"] and not part["faults"] for part in parts.values())
    assert len(parts["attention"]["measured"]["rows"]) == 6
    assert len(parts["graphs"]["measured"]["graphs_by_row"]) == 12
    assert parts["mask"]["measured"]["bytes"] == 4 * (256 * 256 + 256) * 4
    assert parts["mask"]["measured"]["peak_gb"] is None  # unknown on a CPU
    of_lora = parts["lora"]["measured"]
    assert of_lora["tandem"]["operations"] - of_lora["plain"]["operations"] > 0
    assert of_lora["tandem"]["bytes_per_token"] < of_lora["peft"]["bytes_per_token"]
    assert parts["rows"]["measured"]["rows"]["128"]["tokens_per_s"] > 0
    assert parts["out_of_memory"]["measured"] == {"skipped": "needs a GPU"}


def test_the_budgets_are_eight_minutes():
    assert sum(budget for _, budget in gpu_check.PARTS.values()) <= 480


def test_a_part_that_fails_stops_no_other_and_says_why(monkeypatch, capsys):
    def breaks(_setting, measured):
        measured["so_far"] = 3
        raise RuntimeError("no such kernel")

    def lasts(_setting, _measured):
        time.sleep(60)

    parts = {"first": (breaks, 10), "second": (lasts, 0.05), "third": (lambda _setting, _measured: [], 10)}
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    setting = Setting(torch.device("cpu"), SIZES["toy"])
    found = gpu_check.run(setting, list(parts), budget_s=30)
    assert [part["passed"] for part in found.values()] == [False, False, True]
    assert found["first"]["measured"] == {"so_far": 3}
    assert "in breaks" in found["first"]["traceback"]
    assert gpu_check.main(["--device", "cpu", "--size", "toy"]) == 1
    printed = capsys.readouterr().out
    assert "no such kernel" in printed
    assert "longer than its budget" in printed


@pytest.mark.parametrize("unit", [20, 250])
def test_rows_are_forests(unit):
    for row in [*awkward(unit, 199).values(), group_row(8 * unit, 199)]:
        segments_of(row)  # raises for a row that isn't depth-first
        assert int(dense_mask(row).sum()) == seen_keys(row)[0]
        assert not row.loss_mask[row.positions == 0].any()


def test_operations_by_hand():
    """A prompt of 3 tokens and two completions of 2: 7 tokens, 10 without sharing."""
    row = row_of([(None, 0, 3), (0, 3, 2), (0, 3, 2)], 199)
    assert logical_tokens(row) == 10
    assert seen_keys(row) == (6 + 2 * (4 + 5), 2 * 15)
    shape = Shape(hidden=4, intermediate=5, layers=2, heads=2, kv_heads=1, head_dim=8, vocabulary=11)
    weights = 2 * (4 * 8 * 6 + 3 * 4 * 5) + 4 * 11
    assert shape.matmul_weights == weights
    assert step_flops(shape, row) == (7 * 4 * weights + 24 * 12 * 32, 10 * 4 * weights + 30 * 12 * 32)


def test_the_shapes_are_those_of_qwen3():
    """Of 596 million and 4.02 billion weights, nearly all are in matrix products."""
    assert QWEN3_0_6B.matmul_weights == pytest.approx(596e6, rel=1e-3)
    assert QWEN3_4B.matmul_weights == pytest.approx(4.02e9, rel=1e-3)
