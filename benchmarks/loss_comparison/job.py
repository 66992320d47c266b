"""A training job without its service: what the learners of a job do to a policy version, step by step.

The stages are those of tandem.cluster.jobs.stages for one learner: build the batch, score old and reference logprobs
where the options ask for them, then one gradient step per packed row.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from torch import Tensor

from loss_comparison.settings import Settings
from tandem.rl.batch import TrainingBatch, build_batch
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, TrainingConfig
from tandem.rl.learner import Learner
from tandem.rl.learning_rate import step_learning_rate
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings
from tandem.rl.trajectories import TrajectoryGroup

Adapter = Mapping[str, Tensor]
STEP_METRICS = ("loss/grad_norm", "loss/clip_fraction", "loss/ratio_mean", "loss/train")


@dataclass
class Trainer:
    """A policy in training, and the adapters of the versions it has been; `versions[0]` is the base model."""

    learner: Learner
    tokenizer: object
    max_model_len: int
    vocab_size: int
    versions: list[Adapter]
    reward_std_devs: list[float] = field(default_factory=list)

    @classmethod
    def load(cls, path: str, settings: Settings, tokenizer: object) -> Trainer:
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
        """One job: the next version, and metrics. Those of gradient steps are means over the job's steps."""
        batch = self.batch(groups, config, shuffle_seed)
        rows = self.filled(batch.sequences, config)
        steps = []
        for index, row in enumerate(rows):
            if index == 0 and row.policy_versions is not None:  # later steps begin with another policy
                row = replace(row, is_fresh=row.policy_versions == self.version)
            rate = step_learning_rate(config.learning_rate, config, [row], self.reward_std_devs)
            self.learner.forward_backward([row], config.loss(), _chunk_size(config))
            steps.append(self.learner.optim_step(rate))
        self.reward_std_devs.append(batch.reward_std_dev)
        self.versions.append(self.policy.adapter_state())
        metrics = {"reward": batch.reward_mean, "num_steps": len(steps)}
        if steps:
            metrics |= {name: fmean(step[name] for step in steps) for name in STEP_METRICS}
        return metrics

    def filled(self, rows: Sequence[PackedSequence], config: TrainingConfig) -> list[PackedSequence]:
        """The rows with the old and reference logprobs that the options ask for."""
        filled = list(rows)
        if config.precalculate_logprobs:
            filled = self._scored(filled, "old_logprobs", self.versions[-1], config)
        if config.kl_penalty_coef:
            filled = self._scored(filled, "ref_logprobs", self.versions[self._reference(config)], config)
        return filled

    def _reference(self, config: TrainingConfig) -> int:
        if config.kl_ref_adapter_path is not None:
            raise ValueError("kl_ref_adapter_path names a model of a service; here the reference is one of the run's.")
        if config.kl_penalty_step_lag is not None:
            return max(0, self.version - config.kl_penalty_step_lag)
        return config.kl_penalty_reference_step or 0

    def _scored(
        self, rows: Sequence[PackedSequence], field: str, adapter: Adapter, config: TrainingConfig
    ) -> list[PackedSequence]:
        own = self.policy.adapter_state()
        self.policy.load_adapter_state(adapter)
        scores = self.learner.score(rows, _chunk_size(config))
        self.policy.load_adapter_state(own)
        return [replace(row, **{field: score}) for row, score in zip(rows, scores, strict=True)]


def _chunk_size(config: TrainingConfig) -> int:
    return config.logprob_calculation_chunk_size or DEFAULT_LOGPROB_CHUNK_SIZE
