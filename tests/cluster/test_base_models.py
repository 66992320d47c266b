"""Base models as preparation reads them: their configuration, without weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, Qwen3_5TextConfig

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig
from tandem.rl.config import TrainingConfig
from tandem.rl.trajectories import TrajectoryGroup


def group() -> TrajectoryGroup:
    question = {"role": "user", "content": "Which of these numbers is the largest: 3, 17, 8, 41 or 5?"}
    trajectories = [
        {"messages_and_choices": [question, {"role": "assistant", "content": answer}], "reward": reward}
        for answer, reward in (("41", 1.0), ("17", 0.0), ("I do not know.", 0.0))
    ]
    return TrajectoryGroup.model_validate({"trajectories": trajectories})


@pytest.mark.parametrize("is_hybrid", [False, True])
def test_a_job_on_a_hybrid_base_model_is_packed_without_shared_prefixes(
    is_hybrid: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """The configuration decides, and the job's numbers say that nothing is shared."""
    path = tmp_path / "base"
    shutil.copytree(tiny_model, path, ignore=shutil.ignore_patterns("*.safetensors"))
    if is_hybrid:
        Qwen3_5TextConfig(vocab_size=AutoConfig.from_pretrained(tiny_model).vocab_size).save_pretrained(path)
    base = ResolvedBaseModel(BaseModelConfig(name="base", path=str(path), max_model_len=256))
    batch = base.build_batch([group()], TrainingConfig(allow_training_without_logprobs=True), shuffle_seed=None)
    assert batch.num_trained_tokens > 0
    roots = [torch.equal(row.segment_ids, row.parent_ids) for row in batch.sequences]
    assert all(roots) is is_hybrid
    metrics = batch.metrics()
    tokens, computed = (metrics[f"data/step_num_tokens_{part}"] for part in ("in_sequences", "computed"))
    assert (computed == tokens) is is_hybrid and computed <= tokens
