"""The operations of a gradient step, with numbers worked out by hand."""

import torch
from transformers import Qwen3Config, Qwen3MoeConfig

from tandem.cluster.learners.step_meter import StepMeter
from tandem.rl.gradient_step.work import ModelWork, size_of_step
from tandem.rl.models.geometry import geometry_of
from tandem.rl.packing import one_segment
from tandem.rl.settings import LoraSettings

LORA = LoraSettings(r=2, alpha=4, target_modules=("q_proj",))
SHAPE = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_a_token_sees_itself_and_those_before_it():
    rows = [one_segment(torch.arange(4)), one_segment(torch.arange(3))]
    assert size_of_step(rows) == (7, (1 + 2 + 3 + 4) + (1 + 2 + 3))


def test_operations_of_a_step():
    # 4 x 10 weights x 7 tokens + 12 x 5 x 16 pairs
    assert ModelWork(10, 5).operations(7, 16) == 280 + 960


def test_the_work_of_a_dense_model():
    # per layer: q and o 16 x 32, k and v 16 x 16, three of 16 x 24; and the head, 16 x 100
    weights = 3 * (2 * 16 * 32 + 2 * 16 * 16 + 3 * 16 * 24) + 16 * 100
    assert geometry_of(Qwen3Config(**SHAPE), LORA).work == ModelWork(weights, 3 * 4 * 8)


def test_a_token_takes_part_in_its_chosen_experts_alone():
    config = Qwen3MoeConfig(**SHAPE, moe_intermediate_size=24, num_experts=8, num_experts_per_tok=2)
    # per layer: attention as above, the router 16 x 8, and two of eight experts with three matrices each
    weights = 3 * (2 * 16 * 32 + 2 * 16 * 16 + 16 * 8 + 2 * 3 * 16 * 24) + 16 * 100
    assert geometry_of(config, LORA).work == ModelWork(weights, 3 * 4 * 8)


def test_a_meter_on_a_cpu_knows_the_speed_and_no_share_of_a_peak():
    meter = StepMeter("tiny", 0)
    meter.begin()
    meter.end([one_segment(torch.arange(6))], 2.0)
    assert meter.measured == {"device": "cpu", "tokens_per_s": 3.0, "mfu": None, "memory": None}


def test_a_known_gpu_gives_the_share_of_its_peak(monkeypatch):
    meter = StepMeter("tiny", 1, "NVIDIA A100-SXM4-80GB", ModelWork(10**9, 0))
    monkeypatch.setattr(meter, "_memory", lambda: None)  # this machine has no such GPU
    meter.end([one_segment(torch.arange(7800))], 1.0)
    assert meter.measured["mfu"] == 4 * 10**9 * 7800 / 312e12 == 0.1
