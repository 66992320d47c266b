"""Every option of the published schema has an effect: it changes the data of a job or how the job trains."""

import pytest
import torch
from wire_data import choice, group, load_tokenizer, published_schemas, user

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion
from tandem.cluster.jobs.running_job import RunningJob, ServiceStop
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.logprobs.of_job import JobLogprobs
from tandem.cluster.logprobs.pool import ScoreReport
from tandem.rl.batch import build_batch
from tandem.rl.config import TrainingConfig
from tandem.serve.jobs.references import kl_reference

GROUPS = [
    group(
        (0.0, [user("1 + 6 = ?"), choice("six")]),
        (0.2, [user("1 + 6 = ?"), choice("7, I think")]),
        (1.0, [user("1 + 6 = ?"), choice("seven")]),
    ),
    group(
        (0.0, [user("2 + 2 = ?"), choice("five"), user("Sure?"), {"role": "assistant", "content": "no"}]),
        (1.0, [user("2 + 2 = ?"), choice("four")]),
    ),
]
KL = {"kl_penalty_coef": 0.1}
CHANGES = {  # field: (a value with an effect, other options that it needs)
    "advantage_balance": (0.5, {}),
    "allow_training_without_logprobs": (True, {}),
    "epsilon": (0.3, {}),
    "epsilon_high": (0.3, {}),
    "importance_sampling_level": ("sequence", {}),
    "kimi_k2_tau": (0.1, {}),
    "kl_penalty_coef": (0.1, {}),
    "kl_penalty_reference_step": (3, KL),
    "kl_penalty_source": ("current_learner", KL),
    "kl_penalty_step_lag": (2, KL),
    "kl_ref_adapter_path": ("team/project/other:step1", KL),
    "learning_rate": (1e-3, {}),
    "logprob_calculation_chunk_size": (7, {}),
    "loss_fn": ("ppo", {}),
    "mask_prob_ratio": (True, {}),
    "max_negative_advantage_importance_sampling_weight": (2.0, {}),
    "normalize_advantages": (False, {}),
    "num_trajectories_learning_rate_multiplier_power": (0.5, {}),
    "packed_sequence_length": (64, {}),
    "plot_tensors": (True, {}),
    "ppo": (True, {}),
    "precalculate_logprobs": (True, {}),
    "scale_learning_rate_by_reward_std_dev": (True, {}),
    "scale_rewards": (False, {}),
    "truncated_importance_sampling": (2.0, {}),
}


class Recorder:
    """Learners, logprob pool, preparation and store in one object, which records the calls."""

    sequences_per_step = 1

    def __init__(self):
        self.seen, self.tolerance = [], 0.0

    def step(self, sequences, loss, rate, chunk_size, on_wait):
        rows = [
            {name: str(value.tolist()) for name, value in vars(row).items() if value is not None} for row in sequences
        ]
        self.seen.append((rows, loss, rate, chunk_size))
        return {}

    def scorers(self, digest, chunk_size):
        return []

    def score(self, sequences, learners, engines, on_wait):
        return [torch.zeros(row.num_tokens) for row in sequences], ScoreReport()

    def plot(self, job_id, sequences, on_wait):
        self.seen.append("plot")

    def record_event(self, job, type, data, index=None):
        pass


def observed(options):
    """Return all effects of the options: the KL reference, and each gradient step and plot."""
    config, recorder = TrainingConfig(**options), Recorder()
    job = ClaimedJob(
        id="j",
        model_id="m",
        attempt=1,
        payload_key="",
        config=config,
        version=PolicyVersion("m", 4, "current"),
        next_step=5,
        num_recorded_gradient_steps=0,
        reference_digest="reference",
        reward_std_devs=(0.4, 0.3),
    )
    settings = BaseModelConfig(name="base", path="unused", optimizer={"learning_rate": 5e-6})
    stages = JobStages(settings, recorder, recorder, recorder, JobLogprobs(recorder, [], recorder))
    batch = build_batch(GROUPS, load_tokenizer(), config, max_model_len=2048)
    stages._gradient_steps(RunningJob(job, recorder, 30, ServiceStop(0)), batch.sequences)
    return kl_reference(config, "/root"), recorder.seen


def test_every_published_field_is_covered():
    assert set(CHANGES) == set(published_schemas()["ExperimentalTrainingConfig"]["properties"])


@pytest.mark.parametrize("field", CHANGES)
def test_setting_it_changes_something(field):
    value, besides = CHANGES[field]
    assert observed({**besides, field: value}) != observed(besides)


def test_nothing_changes_by_itself():
    assert observed({}) == observed({}) == observed({"learning_rate": 5e-6, "loss_fn": "cispo", "epsilon": 1.0})
