"""Checkpoints are complete and verified, or rejected with the file and the reason."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from tandem.rl import checkpoints
from tandem.rl.checkpoints import LearnerState, read_adapter, read_checkpoint, verify_checkpoint, write_checkpoint
from tandem.rl.errors import CheckpointError

FILES = ["adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"]
CONFIG = {"peft_type": "LORA", "r": 2}


def a_state(value: float = 0.5) -> LearnerState:
    adapter = {"q.lora_A.weight": torch.full((2, 3), value), "q.lora_B.weight": torch.tensor([[1e-30, float("inf")]])}
    return LearnerState(
        adapter, {"q.lora_A.weight.exp_avg": torch.ones(2, 3), "q.lora_A.weight.step": torch.tensor(3.0)}
    )


def test_round_trip(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, a_state(), CONFIG, {"step": 4})
    assert checkpoint.path == tmp_path / checkpoint.digest
    assert sorted(file.name for file in checkpoint.path.iterdir()) == [*FILES[:2], "manifest.json", FILES[2]]
    assert json.loads((checkpoint.path / "adapter_config.json").read_text()) == CONFIG
    verify_checkpoint(checkpoint.path)
    state = read_checkpoint(checkpoint.path)
    (checkpoint.path / "optimizer.safetensors").unlink()
    adapter = read_adapter(checkpoint.path)
    for ours, theirs in (
        (state.adapter, a_state().adapter),
        (state.optimizer, a_state().optimizer),
        (adapter, a_state().adapter),
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_fresh_state_has_no_optimizer_tensors(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, LearnerState(a_state().adapter), CONFIG, {})
    assert read_checkpoint(checkpoint.path).optimizer == {}


def test_the_digest_names_the_content_and_nothing_else(tmp_path: Path) -> None:
    def digest(folder: str, state: LearnerState, config: dict[str, object], step: int) -> str:
        return write_checkpoint(tmp_path / folder, state, config, {"step": step}).digest

    original = digest("a", a_state(), CONFIG, 1)
    assert len(original) == 64
    reordered = LearnerState(dict(reversed(a_state().adapter.items())), a_state().optimizer)
    assert digest("b", reordered, dict(reversed(CONFIG.items())), 2) == original
    assert digest("a", a_state(0.25), CONFIG, 1) != original
    assert digest("a", a_state(), {**CONFIG, "r": 4}, 1) != original
    assert digest("a", LearnerState(a_state().adapter), CONFIG, 1) != original


def test_writing_again_keeps_what_is_there(tmp_path: Path) -> None:
    first = write_checkpoint(tmp_path, a_state(), CONFIG, {"step": 1})
    times = {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()}
    second = write_checkpoint(tmp_path, a_state(), CONFIG, {"step": 2})
    assert second == first
    assert {file.name: file.stat().st_mtime_ns for file in first.path.iterdir()} == times
    assert [entry.name for entry in tmp_path.iterdir()] == [first.digest]


def test_a_second_writer_at_the_same_moment_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writes the same checkpoint between the check and the rename."""
    rename = os.rename

    def late_rename(source: Path, target: Path) -> None:
        monkeypatch.setattr(checkpoints.os, "rename", rename)
        write_checkpoint(tmp_path, a_state(), CONFIG, {"step": 1})
        rename(source, target)

    monkeypatch.setattr(checkpoints.os, "rename", late_rename)
    checkpoint = write_checkpoint(tmp_path, a_state(), CONFIG, {"step": 1})
    verify_checkpoint(checkpoint.path)
    assert [entry.name for entry in tmp_path.iterdir()] == [checkpoint.digest]


def test_an_interrupted_write_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"could not be written.*No space left"):
        write_checkpoint(tmp_path, a_state(), CONFIG, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, a_state(), CONFIG, {}).path
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} has sha256"):
        verify_checkpoint(path)
    with pytest.raises(CheckpointError, match=f"{name} has sha256"):
        write_checkpoint(tmp_path, a_state(), CONFIG, {})
    if name != "adapter_config.json":
        with pytest.raises(CheckpointError, match=f"{name} has sha256"):
            read_checkpoint(path)


@pytest.mark.parametrize("name", FILES)
def test_a_cut_or_missing_file_is_found(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path, a_state(), CONFIG, {}).path
    size = (path / name).stat().st_size
    os.truncate(path / name, size - 1)
    with pytest.raises(CheckpointError, match=f"{name} has {size - 1} bytes, its manifest says {size}"):
        verify_checkpoint(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} can't be read: No such file"):
        verify_checkpoint(path)


def test_a_changed_manifest_is_found(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, a_state(), CONFIG, {}).path
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["optimizer.safetensors"]["sha256"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"its digest .* is not that of its files"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": {}, "digest": ""}', '{"files": 3, "digest": ""}'])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = write_checkpoint(tmp_path, a_state(), CONFIG, {}).path
    (path / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json is not the manifest"):
        verify_checkpoint(path)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json can't be read: No such file"):
        read_checkpoint(tmp_path / "nothing")
