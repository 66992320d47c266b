"""TRL's GRPOTrainer as the peer: same start, same tasks, same measurement."""

import pytest
from loss_comparison import training_run, trl_peer
from loss_comparison.configurations import TRL_STEPS_PER_VERSION, configuration
from loss_comparison.settings import RunRequest

pytest.importorskip("trl", reason="TRL is part of the extra `bench`.")


CALCULATOR = {"environment": "tandem.rl.environments.toy:Calculator", "max_tokens": 40, "packed_sequence_length": 512}


@pytest.mark.parametrize("task", [{}, CALCULATOR], ids=["one turn", "several turns"])
def test_it_starts_alike_sees_the_same_rollouts_and_learns(small, task):
    settings = small.model_copy(update=task)
    own = trl_peer.train(RunRequest.of("trl", configuration("trl-grpo"), 0, 0, settings))
    ours = training_run.train(RunRequest.of("training", configuration("ppo"), 0, 0, settings))

    assert [record["version"] for record in own["curve"]] == [0, 1, 2, 3]
    assert own["curve"][0] == ours["curve"][0]
    assert own["curve"][1]["reward"] == pytest.approx(ours["curve"][1]["reward"])  # the same policy and random numbers
    assert own["curve"][1]["num_steps"] == TRL_STEPS_PER_VERSION
    assert abs(own["curve"][3]["eval"]["kl_base"]) > 1e-3  # it has trained
    assert own["versions"]["trl"]


def test_a_lag_is_rejected(small):
    with pytest.raises(ValueError, match="lag"):
        trl_peer.train(RunRequest.of("trl", configuration("trl-grpo"), 0, 1, small))
