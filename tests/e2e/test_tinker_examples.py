"""The loops of examples/tinker on the whole service: each learns."""

import pytest
from tinker_service import example_programs


@pytest.fixture(scope="module")
def example():
    with example_programs() as program:
        yield program


def mean(values):
    return sum(values) / len(values)


def test_sft_and_distillation(sdk, example):
    taught = example("sft").run(sdk, steps=20)
    assert mean(taught.losses[-3:]) < 0.5 * taught.losses[0]
    assert taught.before < 0.6 and taught.after > taught.before + 0.25
    teacher = taught.trained.save_weights_for_sampler("teacher").result().path
    divergences, before, after = example("distillation").run(sdk, teacher, steps=8)
    assert mean(divergences[-3:]) < 0.5 * divergences[0]
    assert after > before + 0.15


@pytest.mark.slow
def test_grpo(sdk, example):
    rewards = example("grpo").run(sdk, steps=8)
    assert rewards[0] < 0.5 and mean(rewards[-3:]) > rewards[0] + 0.2


def test_dpo(sdk, example):
    losses, preferred = example("dpo").run(sdk, steps=10)
    assert losses[0] == pytest.approx(0.693, abs=0.01), "the policy is its reference"
    assert mean(losses[-3:]) < 0.5 and mean(preferred[-3:]) > 0.75


@pytest.mark.slow
def test_tools(sdk, example):
    rewards = example("tools").run(sdk, steps=6)
    assert mean(rewards[-2:]) > rewards[0] + 0.1
