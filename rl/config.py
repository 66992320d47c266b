"""The training options of the wire API: meaning, default, bounds.

`TrainingConfig` has the options of a client, `None` if unset; `LossConfig` has those of the loss, with all defaults
resolved. The JSON schema of `TrainingConfig` is the published contract and has no bounds, so validators check them.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from tandem.rl.settings import MAX_LEARNING_RATE, UpdateRule
from tandem.rl.tokens.messages import MAX_STEP, publish_plain

LossFn = Literal["cispo", "ppo"]
ImportanceSamplingLevel = Literal["token", "sequence", "average", "geometric_average"]
KlSource = Literal["current_learner", "sample"]

DEFAULT_LOGPROB_CHUNK_SIZE = 1024
DEFAULT_PPO_EPSILON = 0.2
DEFAULT_CISPO_EPSILON = 1.0
DEFAULT_CISPO_EPSILON_HIGH = 4.0


@dataclass(frozen=True)
class LossConfig:
    """The options of the policy loss, with all defaults resolved. None disables an optional term."""

    loss_fn: LossFn = "cispo"
    epsilon: float = DEFAULT_CISPO_EPSILON
    epsilon_high: float = DEFAULT_CISPO_EPSILON_HIGH
    importance_sampling_level: ImportanceSamplingLevel = "token"
    mask_prob_ratio: bool = False
    max_negative_advantage_importance_sampling_weight: float | None = None
    kimi_k2_tau: float | None = None
    truncated_importance_sampling: float | None = None
    kl_coef: float = 0.0
    kl_source: KlSource = "sample"

    update: ClassVar[UpdateRule | None] = None
    """None: the base model's optimizer settings."""


@dataclass(frozen=True)
class CrossEntropy:
    """Supervised fine-tuning: the negative log-probability of each trained token, whatever its advantage and weight."""

    update: ClassVar[UpdateRule | None] = UpdateRule(weight_decay=0.0, max_grad_norm=1.0)
    """As in openpipe-art's supervised training."""


@dataclass(frozen=True)
class Dpo:
    """Direct preference optimization over the pairs of one gradient step. A pair is a group of the packed rows."""

    beta: float
    """How strongly the policy is held to the reference."""
    first_pair: int
    """The group that is the step's first pair."""
    num_pairs: int

    update: ClassVar[UpdateRule | None] = UpdateRule(weight_decay=0.0, max_grad_norm=1.0)
    """As in supervised training."""


Objective = LossConfig | CrossEntropy | Dpo
"""What a gradient step minimises. `losses.loss_terms` has the function of each."""


def _bounded(holds: Callable[[float], bool], rule: str) -> AfterValidator:
    """Return a bound that is in the error message but not in the JSON schema."""

    def check(value: float) -> float:
        if not holds(value):
            raise ValueError(f"must be {rule}, got {reprlib.repr(value)}")
        return value

    return AfterValidator(check)


MAX_NUMBER = 1e30
"""Larger magnitudes overflow float32 on the way to the weights."""
MAX_COEFFICIENT = 1e3
"""Advantages are about 1, so a larger term would leave nothing of them."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Annotated[Finite, _bounded(lambda x: abs(x) <= MAX_NUMBER, f"between -{MAX_NUMBER:g} and {MAX_NUMBER:g}")]
Coefficient = Annotated[
    Finite, _bounded(lambda x: abs(x) <= MAX_COEFFICIENT, f"between -{MAX_COEFFICIENT:g} and {MAX_COEFFICIENT:g}")
]
Strength = Annotated[Finite, _bounded(lambda x: 0 <= x <= MAX_COEFFICIENT, f"between 0 and {MAX_COEFFICIENT:g}")]
LearningRate = Annotated[
    Finite, _bounded(lambda x: 0 <= x <= MAX_LEARNING_RATE, f"between 0 and {MAX_LEARNING_RATE:g}")
]
NonNegative = Annotated[Number, _bounded(lambda x: x >= 0, "0 or more")]
Positive = Annotated[Number, _bounded(lambda x: x > 0, "greater than 0 (leave it out to disable this)")]
Balance = Annotated[Number, _bounded(lambda x: -1 <= x <= 1, "between -1 (negative only) and 1 (positive only)")]
Power = Annotated[Number, _bounded(lambda x: -10 <= x <= 10, "between -10 and 10")]
StepIndex = Annotated[int, _bounded(lambda x: 0 <= x <= MAX_STEP, f"0 (the untrained model) to {MAX_STEP}")]
Count = Annotated[int, _bounded(lambda x: 1 <= x <= MAX_STEP, f"at least 1 and at most {MAX_STEP}")]


class TrainingConfig(BaseModel):
    """The training options of one job. `None` (or leaving it out) means unset: the default applies."""

    model_config = ConfigDict(
        title="ExperimentalTrainingConfig", extra="forbid", strict=True, frozen=True, json_schema_extra=publish_plain
    )

    advantage_balance: Balance | None = None
    """0. b > 0 scales negative advantages by 1 - b, b < 0 positive ones by 1 + b, before normalisation."""
    allow_training_without_logprobs: bool | None = None
    """false. Also trains assistant turns that carry no logprobs; their importance ratio is 1."""
    epsilon: NonNegative | None = None
    """Lower clip distance of the ratio. PPO 0.2, CISPO 1.0."""
    epsilon_high: NonNegative | None = None
    """Upper clip distance of the ratio. PPO: same as epsilon. CISPO: 4.0, whatever epsilon is."""
    importance_sampling_level: ImportanceSamplingLevel | None = None
    """token. Over what the ratio is taken: each token, each completion, or a mean of the two."""
    kimi_k2_tau: Coefficient | None = None
    """Unset. Subtracts tau * (log ratio) from each advantage; -1000 to 1000."""
    kl_penalty_coef: Strength | None = None
    """0. Strength of the KL penalty against the reference policy; at most 1000."""
    kl_penalty_reference_step: StepIndex | None = None
    """Unset: the base model. The version of the model that is the KL reference; it must exist when the job is sent."""
    kl_penalty_source: KlSource | None = None
    """sample. Which logprobs are compared with the reference: the learner's own or the sampled ones."""
    kl_penalty_step_lag: Count | None = None
    """Unset. The KL reference is the version this many steps before the one that the job starts from, or version 0."""
    kl_ref_adapter_path: str | None = None
    """Unset. The KL reference as `entity/project/name:stepN` or `checkpoints/<digest>`, of one's own models on the same
    base model; wins over kl_penalty_reference_step."""
    learning_rate: LearningRate | None = None
    """The base model's in the service's configuration (5e-6 unless set there), constant over the job. At most 1: AdamW
    moves every weight by about the learning rate in each step, and the weights of an adapter are far below 1."""
    logprob_calculation_chunk_size: Count | None = None
    """1024 tokens. How many logits are held at once; affects memory, not numbers."""
    loss_fn: LossFn | None = None
    """cispo."""
    mask_prob_ratio: bool | None = None
    """false. Tokens whose ratio lies outside the clip range get ratio 0."""
    max_negative_advantage_importance_sampling_weight: Positive | None = None
    """Unset. Caps the ratio of every token, whatever the sign of its advantage."""
    normalize_advantages: bool | None = None
    """true. false switches scale_rewards off too."""
    num_trajectories_learning_rate_multiplier_power: Power | None = None
    """0. Multiplies the learning rate by (completions in a packed sequence) ** power; at most 10 either way."""
    packed_sequence_length: Count | None = None
    """Unset: the longest sequence rounded up to 2048, at least 8192 for learners on GPUs, at most the model's limit.
    Longer sequences are dropped."""
    plot_tensors: bool | None = None
    """false. Keeps pictures of the packed tensors."""
    ppo: bool | None = None
    """false. The older way to write loss_fn = "ppo"."""
    precalculate_logprobs: bool | None = None
    """false. Recomputes the old logprobs with the learner before the first gradient step."""
    scale_learning_rate_by_reward_std_dev: bool | None = None
    """false. Scales the learning rate by the trend of the reward's spread."""
    scale_rewards: bool | None = None
    """true. Divides a group's advantages by the standard deviation of its rewards."""
    truncated_importance_sampling: Positive | None = None
    """Unset. Multiplies the loss by the ratio of learner to sampler, truncated at this value."""

    @model_validator(mode="after")
    def _options_agree(self) -> TrainingConfig:
        if self.loss_fn is not None and self.ppo is not None and (self.loss_fn == "ppo") != self.ppo:
            raise ValueError(
                f"loss_fn={self.loss_fn!r} and ppo={str(self.ppo).lower()} contradict each other; send loss_fn alone"
            )
        if self.kl_penalty_reference_step is not None and self.kl_penalty_step_lag is not None:
            raise ValueError(
                "kl_penalty_reference_step and kl_penalty_step_lag both choose the KL reference; send one of them"
            )
        if self.kl_ref_adapter_path is not None and self.kl_penalty_step_lag is not None:
            raise ValueError(
                "kl_ref_adapter_path and kl_penalty_step_lag both choose the KL reference; send one of them"
            )
        for field in ("kl_penalty_reference_step", "kl_penalty_step_lag", "kl_ref_adapter_path"):
            if getattr(self, field) is not None and not self.kl_penalty_coef:
                raise ValueError(
                    f"{field} does nothing without a KL penalty; leave it out, or send a kl_penalty_coef above 0 too"
                )
        return self

    def loss(self) -> LossConfig:
        """Return the loss options with all defaults."""
        loss_fn: LossFn = self.loss_fn or ("ppo" if self.ppo else "cispo")
        epsilon = _or(self.epsilon, DEFAULT_PPO_EPSILON if loss_fn == "ppo" else DEFAULT_CISPO_EPSILON)
        return LossConfig(
            loss_fn=loss_fn,
            epsilon=epsilon,
            epsilon_high=_or(self.epsilon_high, epsilon if loss_fn == "ppo" else DEFAULT_CISPO_EPSILON_HIGH),
            importance_sampling_level=self.importance_sampling_level or "token",
            mask_prob_ratio=bool(self.mask_prob_ratio),
            max_negative_advantage_importance_sampling_weight=self.max_negative_advantage_importance_sampling_weight,
            kimi_k2_tau=self.kimi_k2_tau,
            truncated_importance_sampling=self.truncated_importance_sampling,
            kl_coef=self.kl_penalty_coef or 0.0,
            kl_source=self.kl_penalty_source or "sample",
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
