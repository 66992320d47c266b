"""Adapters that aren't finite in the engine's dtype, and the engine's memory of versions that it refuses."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from tandem.cluster.engine.versions import finiteness
from tandem.cluster.engine.versions.finiteness import NotFiniteVersions, check_weights
from tandem.cluster.errors import VersionNotFiniteError

LARGEST_HALF = 65504.0


def write(directory, value, name="lora_B", alpha=16):
    weights = {f"layer.{part}.weight": torch.ones(4, 8) for part in ("lora_A", "lora_B")}
    weights[f"layer.{name}.weight"][2, 3] = value
    save_file(weights, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": alpha}))


@pytest.mark.parametrize("name", ["lora_A", "lora_B"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_weight_that_is_not_finite_is_named(tmp_path, name, value):
    write(tmp_path, value, name)
    with pytest.raises(ValueError, match=f"{name}.weight isn't finite"):
        check_weights(tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "name", "value", "alpha", "fits"),
    [
        (torch.float32, "lora_B", 3e38, 8, True),
        (torch.float32, "lora_B", -3e38, 16, False),  # vLLM multiplies B by alpha / r
        (torch.float32, "lora_A", 3e38, 16, True),
        (torch.bfloat16, "lora_A", 3.4e38, 8, False),  # rounded up to infinity
        (torch.bfloat16, "lora_A", 3.3e38, 8, True),
        (torch.float16, "lora_A", LARGEST_HALF, 8, True),
        (torch.float16, "lora_A", 1e5, 8, False),
        (torch.float16, "lora_B", LARGEST_HALF, 16, False),
        (torch.float16, "lora_B", LARGEST_HALF, 8, True),
    ],
)
def test_weights_are_checked_as_the_engine_holds_them(tmp_path, dtype, name, value, alpha, fits):
    write(tmp_path, value, name, alpha)
    if fits:
        check_weights(tmp_path, dtype)
    else:
        with pytest.raises(ValueError, match=f"{name}.weight.*{dtype}"):
            check_weights(tmp_path, dtype)


def test_a_refused_version_stays_refused_and_is_reported_while_it_is_requested(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(finiteness.time, "monotonic", lambda: now)
    versions = NotFiniteVersions()
    versions.check("a")
    versions.refuse("a", "its weight w isn't finite")
    versions.see("b")
    assert versions.recent() == ["a", "b"]
    now += finiteness.REPORTED_S + 1
    assert versions.recent() == []
    with pytest.raises(VersionNotFiniteError, match="weight w"):
        versions.check("a")
    versions.check("b")
    assert versions.recent() == ["a"]


def test_the_memory_of_reports_is_bounded():
    versions = NotFiniteVersions()
    for k in range(3 * finiteness.MAX_REPORTED):
        versions.see(str(k))
    assert len(versions.recent()) == finiteness.MAX_REPORTED
