"""The margins of routers: by hand, in every family, and as a metric of a gradient step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_families import EXPERTS, MIXTURE, MIXTURES, family, save
from transformers import AutoModelForCausalLM
from trees import branching_group

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.layers.routing import RouterMargins, margins_of
from tandem.rl.packing import pack
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings


def test_the_margin_is_between_the_last_chosen_expert_and_the_next() -> None:
    scores = torch.tensor([[4.0, 1.0, 3.0, 2.5], [1.0, -8.0, 1.0, 0.0], [9.0, 2.0, 1.5, 0.0]])
    chosen = torch.tensor([[0, 2], [0, 2], [1, 2]])  # the first expert of the last token is left out with its group
    margins, rounding = margins_of(scores, chosen, torch.bfloat16)
    assert margins.tolist() == [0.5, 1.0, 1.5]
    assert rounding.tolist() == [4 / 128, 8 / 128, 9 / 128]


FAMILIES = MIXTURES | {
    "granitemoehybrid": family(
        "granitemoehybrid", layer_types=["attention"] * 2, shared_intermediate_size=32, **MIXTURE
    )
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_choice_is_counted_and_equal_experts_are_ties(name: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[name]).eval()
    margins = RouterMargins(model.get_decoder())
    token_ids = torch.arange(1, 24)[None]
    model(token_ids)
    assert margins.num_routers > 0
    near_ties, choices = margins.counts.tolist()
    assert choices == 23 * margins.num_routers and near_ties < choices
    margins.counts.zero_()
    with torch.no_grad():
        for weight_name, weight in model.named_parameters():
            if weight_name.endswith((".gate.weight", ".router.weight", ".router.bias")):
                weight.zero_()
        model(token_ids)  # scores
    assert margins.counts.tolist() == [0, 0]
    model(token_ids)
    assert margins.counts.tolist() == [23 * margins.num_routers] * 2


def test_a_step_of_a_mixture_reports_its_near_ties(tmp_path: Path, qwen3_path: Path) -> None:
    rows, loss = pack(branching_group(seed=3), 500), LossConfig()
    mixture = Policy.load(save(MIXTURES["qwen3_moe"], tmp_path), "cpu", lora=EXPERTS)
    learner = Learner(mixture)
    assert learner.step(rows, loss, learning_rate=0.0)["routing/near_tie_fraction"] == 0
    for name, weight in mixture._decoder.named_parameters():
        if name.endswith(".gate.weight"):
            weight.data.zero_()
    assert learner.step(rows, loss, learning_rate=0.0)["routing/near_tie_fraction"] == 1
    dense = Learner(Policy.load(qwen3_path, "cpu", lora=LoraSettings(r=2, target_modules=("q_proj",))))
    assert "routing/near_tie_fraction" not in dense.step(rows, loss, learning_rate=0.0)
