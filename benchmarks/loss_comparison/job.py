"""A training job without its service: one learner takes the gradient steps of `tandem.rl.steps`, as a service does."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING

from torch import Tensor

from loss_comparison.settings import Settings
from tandem.rl.batch import TrainingBatch, build_batch
from tandem.rl.config import TrainingConfig
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings
from tandem.rl.steps import fill_logprobs, gradient_steps, logprob_chunk_size
from tandem.rl.trajectories import TrajectoryGroup

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Adapter = Mapping[str, Tensor]
STEP_METRICS = ("loss/grad_norm", "loss/clip_fraction", "loss/ratio_mean", "loss/train")


@dataclass
class Trainer:
    """A policy in training, and the adapters of its versions so far; `versions[0]` is the base model."""

    learner: Learner
    tokenizer: PreTrainedTokenizerBase
    max_model_len: int
    vocab_size: int
    versions: list[Adapter]
    reward_std_devs: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, path: str, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> Trainer:
        from transformers import AutoConfig

        text = AutoConfig.from_pretrained(path).get_text_config()
        lora = LoraSettings(r=settings.lora_r, alpha=settings.lora_alpha)
        policy = Policy.load(path, settings.device, settings.dtype, lora=lora)
        return cls(
            Learner(policy), tokenizer, text.max_position_embeddings, text.vocab_size, [policy.adapter_state()]
        )  # fmt: skip

    @property
    def policy(self) -> Policy:
        return self.learner.policy

    @property
    def version(self) -> int:
        return len(self.versions) - 1

    def batch(self, groups: Sequence[TrajectoryGroup], config: TrainingConfig, shuffle_seed: str) -> TrainingBatch:
        seed = zlib.crc32(shuffle_seed.encode())
        return build_batch(groups, self.tokenizer, config, self.max_model_len, seed, self.vocab_size)

    def train(self, groups: Sequence[TrajectoryGroup], config: TrainingConfig, shuffle_seed: str) -> dict[str, float]:
        """Run one job and return its metrics; those of gradient steps are means over the job's steps."""
        assert config.learning_rate is not None, "a comparison sets the learning rate"
        batch = self.batch(groups, config, shuffle_seed)
        rows = self.filled(batch.sequences, config)
        rate = config.learning_rate
        steps = list(gradient_steps(self.learner, rows, config, rate, self.version, self.reward_std_devs))
        self.reward_std_devs.append(batch.reward_std_dev)
        self.versions.append(self.policy.adapter_state())
        metrics = {"reward": batch.reward_mean, "num_steps": len(steps)}
        if steps:
            metrics |= {name: fmean(step[name] for step in steps) for name in STEP_METRICS}
        return metrics

    def filled(self, rows: Sequence[PackedSequence], config: TrainingConfig) -> list[PackedSequence]:
        """Return the rows with the old and reference logprobs that the options need."""

        def score(version: int, rows: Sequence[PackedSequence]) -> list[Tensor]:
            return self.learner.score(rows, logprob_chunk_size(config), self.versions[version])

        reference = self._reference(config) if config.kl_penalty_coef else None
        return fill_logprobs(rows, config, score, policy=self.version, reference=reference)

    def _reference(self, config: TrainingConfig) -> int:
        if config.kl_ref_adapter_path is not None:
            raise ValueError("kl_ref_adapter_path names a model of a service; here the reference is one of the run's.")
        if config.kl_penalty_step_lag is not None:
            return max(0, self.version - config.kl_penalty_step_lag)
        return config.kl_penalty_reference_step or 0
