"""The comparison of gradient steps, at toy size."""

import pytest
import torch
from learner_throughput import Workload, dense_step, run, shared_step, table

from tandem.rl.packing import pack

TOY = Workload(
    num_groups=2,
    group_size=2,
    prompt_tokens=12,
    completion_tokens=6,
    spread_tokens=2,
    hidden=32,
    num_layers=2,
    num_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    intermediate=32,
    vocabulary=64,
)


def test_every_contender_takes_its_steps():
    result = run(TOY, repeats=2, threads=1, turn_s=0)
    assert list(result["steps"]) == ["tandem", "trl", "dense", "shared", "matmuls"]
    assert all(len(step["all_seconds"]) == 2 and step["seconds"] > 0 for step in result["steps"].values())
    assert result["steps"]["trl"]["times_trl"] == 1
    # Two groups of 2 completions on a prompt whose last token is in each of them.
    assert result["tokens"]["in_rows"] == 2 * 11 + result["tokens"]["trained"] + 4
    assert table(result).row_count == 5


def test_plain_contenders_compute_the_same_gradient(tmp_path):
    path = tmp_path / "model"
    TOY.make_model(path)
    groups = TOY.make_groups()
    rows = [row for group in groups for row in pack(group, 100)]
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: norms.append(float(clip(*given))))
        dense_step(path, TOY, groups)()
        shared_step(path, TOY, rows)()
    assert norms[0] == pytest.approx(norms[1], rel=1e-4) and norms[0] > 0
