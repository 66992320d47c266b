"""The comparison varies every option of the loss."""

from dataclasses import fields

import pytest
from loss_comparison.configurations import BASELINE, CONFIGURATIONS, configuration

from tandem.rl.config import LossConfig

LOSSES = {found.name: found.training_config().loss() for found in CONFIGURATIONS}


@pytest.mark.parametrize("option", [field.name for field in fields(LossConfig)])
def test_every_option_of_the_loss_is_varied(option):
    assert len({getattr(loss, option) for loss in LOSSES.values()}) > 1


def test_all_levels_several_epsilons_and_clip_higher_are_there():
    ppo = [loss for loss in LOSSES.values() if loss.loss_fn == "ppo"]
    assert {loss.importance_sampling_level for loss in ppo} == {"token", "sequence", "average", "geometric_average"}
    assert len({loss.epsilon for loss in ppo}) >= 3
    assert any(loss.epsilon_high > loss.epsilon for loss in ppo)


@pytest.mark.parametrize("option", ["scale_rewards", "precalculate_logprobs", "kl_penalty_step_lag"])
def test_options_beside_the_loss_are_varied(option):
    assert any(getattr(found.training_config(), option) is not None for found in CONFIGURATIONS)


def test_names_and_contents_are_unique_and_the_baseline_overrides_nothing():
    assert len({found.name for found in CONFIGURATIONS}) == len(CONFIGURATIONS)
    assert len({str(found.training_config()) for found in CONFIGURATIONS}) == len(CONFIGURATIONS)
    assert configuration(BASELINE).overrides == {}
    with pytest.raises(ValueError, match=r"'cipso'.*cispo, "):
        configuration("cipso")
