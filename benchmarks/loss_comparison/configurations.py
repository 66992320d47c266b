"""The loss functions that are compared, each with a name, its training options and a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tandem.rl.config import TrainingConfig

Family = Literal["cispo", "ppo", "importance sampling level", "off-policy correction", "KL and advantages", "peer"]


@dataclass(frozen=True)
class Configuration:
    """One loss. `overrides` are fields of TrainingConfig; all others have the service's default."""

    name: str
    family: Family
    overrides: dict[str, Any]
    meaning: str

    def training_config(self, **common: Any) -> TrainingConfig:
        """Return the options of each job of a run. `common` are the options that all runs share."""
        return TrainingConfig(**common, **self.overrides)


BASELINE = "cispo"
"""The service's default, which every other configuration is compared with."""

CONFIGURATIONS = (
    Configuration("cispo", "cispo", {}, "The default: CISPO with epsilon 1 and epsilon_high 4."),
    Configuration(
        "cispo-tight", "cispo", {"epsilon": 0.2, "epsilon_high": 0.28}, "CISPO whose weights are clipped to 0.8..1.28."
    ),
    Configuration(
        "cispo-cap-1",
        "cispo",
        {"max_negative_advantage_importance_sampling_weight": 1.0},
        "CISPO whose ratios are capped at 1, whatever the advantage.",
    ),
    Configuration("ppo", "ppo", {"loss_fn": "ppo"}, "PPO with epsilon 0.2 on both sides."),
    Configuration("ppo-eps-0.05", "ppo", {"loss_fn": "ppo", "epsilon": 0.05}, "PPO with a quarter of that range."),
    Configuration("ppo-eps-0.5", "ppo", {"loss_fn": "ppo", "epsilon": 0.5}, "PPO with a wide range."),
    Configuration(
        "ppo-clip-higher",
        "ppo",
        {"loss_fn": "ppo", "epsilon": 0.2, "epsilon_high": 0.28},
        "PPO with DAPO's clip-higher: more room upwards than downwards.",
    ),
    Configuration(
        "ppo-mask",
        "ppo",
        {"loss_fn": "ppo", "mask_prob_ratio": True},
        "PPO with mask_prob_ratio: tokens outside the clip range have ratio 0, and no gradient.",
    ),
    Configuration(
        "ppo-sequence",
        "importance sampling level",
        {"loss_fn": "ppo", "importance_sampling_level": "sequence"},
        "PPO with one ratio per completion, as in GSPO, but PPO's epsilon.",
    ),
    Configuration(
        "ppo-average",
        "importance sampling level",
        {"loss_fn": "ppo", "importance_sampling_level": "average"},
        "PPO with the mean of token and sequence ratio.",
    ),
    Configuration(
        "ppo-geometric",
        "importance sampling level",
        {"loss_fn": "ppo", "importance_sampling_level": "geometric_average"},
        "PPO with the geometric mean of token and sequence ratio.",
    ),
    Configuration(
        "cispo-sequence",
        "importance sampling level",
        {"importance_sampling_level": "sequence"},
        "CISPO with one weight per completion.",
    ),
    Configuration(
        "cispo-kimi-tau",
        "off-policy correction",
        {"kimi_k2_tau": 0.5},
        "CISPO with kimi_k2_tau 0.5: advantages lose half of the log ratio.",
    ),
    Configuration(
        "cispo-tis",
        "off-policy correction",
        {"precalculate_logprobs": True, "truncated_importance_sampling": 2.0},
        "CISPO with old logprobs recomputed and learner-to-sampler weights truncated at 2.",
    ),
    Configuration(
        "ppo-tis",
        "off-policy correction",
        {"loss_fn": "ppo", "precalculate_logprobs": True, "truncated_importance_sampling": 2.0},
        "PPO around the recomputed policy, with learner-to-sampler weights truncated at 2.",
    ),
    Configuration(
        "cispo-kl-sample",
        "KL and advantages",
        {"kl_penalty_coef": 0.1},
        "CISPO with a KL penalty of 0.1 against the base model, measured where the tokens were sampled.",
    ),
    Configuration(
        "cispo-kl-learner",
        "KL and advantages",
        {"kl_penalty_coef": 0.1, "kl_penalty_source": "current_learner"},
        "The same penalty, measured from the policy in training.",
    ),
    Configuration(
        "cispo-kl-moving",
        "KL and advantages",
        {"kl_penalty_coef": 0.1, "kl_penalty_step_lag": 1},
        "The same penalty against the previous version, which changes with each job.",
    ),
    Configuration(
        "cispo-unscaled",
        "KL and advantages",
        {"scale_rewards": False},
        "CISPO without scale_rewards: advantages aren't divided by the group's standard deviation.",
    ),
)

TRL_CONFIGURATIONS = (
    Configuration(
        "trl-grpo",
        "peer",
        {"loss_type": "grpo", "epsilon": 0.2},
        "TRL's GRPOTrainer, loss_type grpo with epsilon 0.2: the counterpart of ppo.",
    ),
    Configuration(
        "trl-cispo",
        "peer",
        {"loss_type": "cispo", "epsilon_high": 5.0},
        "TRL's GRPOTrainer, loss_type cispo with weights clipped at 5: the counterpart of cispo.",
    ),
)
"""Their overrides are fields of trl.GRPOConfig."""

COUNTERPARTS = {"trl-grpo": "ppo", "trl-cispo": "cispo"}
"""Tandem's configuration with the same loss as the peer's."""

TRL_STEPS_PER_VERSION = 4
TRL_DIFFERENCES = (
    "TRL takes exactly four gradient steps per version, each on a quarter of the rollouts in shuffled order; Tandem"
    " takes one per packed row of whole groups, about as many.",
    "TRL keeps groups whose rewards are all equal, with advantage 0, in the mean; Tandem leaves them out.",
    "TRL divides by the sample standard deviation + 1e-4, Tandem by the population's + 1e-6, and then by the mean"
    " absolute advantage of the job.",
    "TRL trains one sequence per rollout: where the chat template would render an earlier turn differently, the last"
    " one; Tandem trains all.",
    "TRL computes old logprobs with the model in training, Tandem takes those of the sampler.",
)


def configuration(name: str) -> Configuration:
    """Return the configuration of this name. Raise ValueError, with the known names, if there is none."""
    known = {found.name: found for found in (*CONFIGURATIONS, *TRL_CONFIGURATIONS)}
    if name not in known:
        raise ValueError(f"There is no configuration {name!r}. Choose one of: {', '.join(known)}.")
    return known[name]
