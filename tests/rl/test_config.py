import pytest
from pydantic import ValidationError
from wire_data import inlined, published_schemas

from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.settings import LoraSettings, OptimizerSettings

# What openpipe-art 0.5.18 sends when train() is called without options.
CLIENT_DEFAULTS = {
    "advantage_balance": 0.0,
    "epsilon": None,
    "epsilon_high": None,
    "importance_sampling_level": "token",
    "kimi_k2_tau": None,
    "learning_rate": 5e-6,
    "mask_prob_ratio": False,
    "max_negative_advantage_importance_sampling_weight": None,
    "ppo": False,
    "precalculate_logprobs": False,
    "scale_rewards": True,
}


def test_the_schema_is_the_published_one():
    published = published_schemas()["ExperimentalTrainingConfig"]
    assert inlined(TrainingConfig.model_json_schema(), {}) == inlined(published, {})


def test_the_clients_defaults_are_the_defaults():
    config = TrainingConfig.model_validate(CLIENT_DEFAULTS)
    assert config.loss() == TrainingConfig().loss() == LossConfig()


@pytest.mark.parametrize(
    ("options", "epsilon", "epsilon_high"),
    [
        ({}, 1.0, 4.0),
        ({"epsilon": 0.3}, 0.3, 4.0),
        ({"epsilon_high": 0.0}, 1.0, 0.0),
        ({"ppo": True}, 0.2, 0.2),
        ({"loss_fn": "ppo", "epsilon": 0.3}, 0.3, 0.3),
        ({"loss_fn": "ppo", "epsilon": 0.0, "epsilon_high": 0.5}, 0.0, 0.5),
    ],
)
def test_clip_defaults_depend_on_the_loss(options, epsilon, epsilon_high):
    loss = TrainingConfig(**options).loss()
    assert (loss.epsilon, loss.epsilon_high) == (epsilon, epsilon_high)
    assert loss.loss_fn == ("ppo" if "ppo" in options or "loss_fn" in options else "cispo")


def test_loss_options_are_passed_on():
    options = {
        "importance_sampling_level": "sequence",
        "mask_prob_ratio": True,
        "max_negative_advantage_importance_sampling_weight": 3.0,
        "kimi_k2_tau": -0.5,
        "truncated_importance_sampling": 2.0,
    }
    config = TrainingConfig(**options, kl_penalty_coef=0.1, kl_penalty_source="current_learner")
    assert config.loss() == LossConfig(**options, kl_coef=0.1, kl_source="current_learner")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epsilon", -0.1),
        ("epsilon_high", -1),
        ("learning_rate", -1e-6),
        ("learning_rate", 1.001),
        ("learning_rate", 1e30),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("kimi_k2_tau", float("inf")),
        ("kimi_k2_tau", -1001),
        ("kl_penalty_coef", 1001),
        ("epsilon", 1e31),
        ("epsilon_high", float("inf")),
        ("num_trajectories_learning_rate_multiplier_power", -11.0),
        ("kl_penalty_reference_step", 2**31),
        ("kl_penalty_step_lag", 10**4000),
        ("advantage_balance", 1.01),
        ("max_negative_advantage_importance_sampling_weight", 0),
        ("truncated_importance_sampling", 0.0),
        ("kl_penalty_coef", -1),
        ("kl_penalty_reference_step", -1),
        ("kl_penalty_step_lag", 0),
        ("logprob_calculation_chunk_size", 0),
        ("packed_sequence_length", 0),
        ("packed_sequence_length", 1.5),
        ("importance_sampling_level", "word"),
        ("loss_fn", "dpo"),
        ("scale_rewards", "yes"),
        ("epsilon", "0.2"),
        ("learning_rat", 1e-5),
    ],
)
def test_a_bad_value_is_refused_at_its_field(field, value):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate({field: value})
    assert [error["loc"] for error in caught.value.errors()] == [(field,)]


@pytest.mark.parametrize(
    "options",
    [
        {"loss_fn": "cispo", "ppo": True},
        {"loss_fn": "ppo", "ppo": False},
        {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 0, "kl_penalty_step_lag": 1},
        {"kl_penalty_coef": 0.1, "kl_ref_adapter_path": "team/project/model:step1", "kl_penalty_step_lag": 1},
    ],
)
def test_options_that_contradict_each_other_are_refused_by_name(options):
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate(options)
    assert all(name in str(caught.value) for name in options if name != "kl_penalty_coef")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kl_penalty_reference_step", 0),
        ("kl_penalty_step_lag", 1),
        ("kl_ref_adapter_path", "team/project/model:step1"),
    ],
)
@pytest.mark.parametrize("coef", [None, 0.0])
def test_a_reference_without_a_penalty_is_refused(field, value, coef):
    with pytest.raises(ValidationError, match=f"{field} does nothing without a KL penalty"):
        TrainingConfig.model_validate({field: value, "kl_penalty_coef": coef})
    TrainingConfig.model_validate({field: value, "kl_penalty_coef": 0.1})


@pytest.mark.parametrize(
    ("settings", "field", "values"),
    [
        (OptimizerSettings, "learning_rate", (-1e-9, 1.001, 1e30)),
        (OptimizerSettings, "betas", ((1.0, 0.99), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan")))),
        (OptimizerSettings, "eps", (0, 1e-40, 1.1)),
        (OptimizerSettings, "weight_decay", (-1, 101)),
        (OptimizerSettings, "max_grad_norm", (0, 1e13)),
        (LoraSettings, "r", (0, 513)),
        (LoraSettings, "alpha", (0, 1e5)),
        (LoraSettings, "seed", (2**63, -(2**63) - 1)),
    ],
)
def test_settings_of_a_base_model_that_can_only_destroy_are_refused_at_their_field(settings, field, values):
    for value in (*values, float("nan"), float("inf"), float("-inf")):
        with pytest.raises(ValidationError) as caught:
            settings.model_validate({field: value})
        assert {error["loc"][0] for error in caught.value.errors()} == {field}, value


def test_neutral_values_pass():
    TrainingConfig(
        kl_penalty_coef=0.0,
        kl_penalty_source="sample",
        precalculate_logprobs=False,
        num_trajectories_learning_rate_multiplier_power=0.0,
        scale_learning_rate_by_reward_std_dev=False,
        plot_tensors=False,
        scale_rewards=True,
        normalize_advantages=False,
    )
