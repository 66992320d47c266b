import pytest

from tandem.cluster.config import BaseModelConfig, EngineConfig, LearnersConfig, TandemConfig
from tandem.cluster.placement import place


def config(**parts):
    return TandemConfig(base_models=(BaseModelConfig(name="m", path="x", **parts),))


@pytest.mark.parametrize(
    ("num_gpus", "num_learners", "share"),
    [
        (0, 1, 0.0),  # CPUs only
        (1, 1, 0.5),  # learner and engine halve one GPU
        (2, 1, 1.0),  # one GPU each
        (8, 3, 1.0),
        (2, 3, 0.5),  # three learners and an engine on two GPUs
    ],
)
def test_gpus_are_shared_out_evenly(num_gpus, num_learners, share):
    [base] = place(config(learners=LearnersConfig(count=num_learners)), num_gpus).base_models
    assert (base.learners.num_gpus, base.engine.num_gpus) == (share, share)


def test_what_the_user_sets_stays():
    engine = EngineConfig(num_gpus=0.25, gpu_memory_utilization=0.2)
    [base] = place(config(learners=LearnersConfig(num_gpus=0.7), engine=engine), 1).base_models
    assert (base.learners.num_gpus, base.engine.num_gpus, base.engine.gpu_memory_utilization) == (0.7, 0.25, 0.2)


def test_a_share_is_what_others_leave():
    [base] = place(config(engine=EngineConfig(num_gpus=0.25)), 1).base_models
    assert base.learners.num_gpus == 0.75
