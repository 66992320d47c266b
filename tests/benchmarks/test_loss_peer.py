"""TRL's GRPOTrainer as the peer: same start, same tasks, same measurement."""

import pytest
from loss_comparison import training_run, trl_peer
from loss_comparison.configurations import TRL_STEPS_PER_VERSION, configuration
from loss_comparison.settings import RunRequest

pytest.importorskip("trl", reason="TRL is part of the extra `bench`.")


def test_it_starts_alike_sees_the_same_tasks_and_learns(small):
    seen = []

    class Watched(trl_peer._Run):
        def _reward(self, completions, task_index, **unused):
            seen.extend(self._tasks[index] for index in task_index)
            return super()._reward(completions, task_index, **unused)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trl_peer, "_Run", Watched)
        own = trl_peer.train(RunRequest.of("trl", configuration("trl-grpo"), 0, 0, small))
    ours = training_run.train(RunRequest.of("training", configuration("ppo"), 0, 0, small))

    assert [record["version"] for record in own["curve"]] == [0, 1, 2, 3]
    assert own["curve"][0] == ours["curve"][0]
    assert own["curve"][1]["num_steps"] == TRL_STEPS_PER_VERSION
    assert abs(own["curve"][3]["eval"]["kl_base"]) > 1e-3  # it has trained
    stream = training_run.Bench.of(small, 0).tasks
    in_order = list(dict.fromkeys(seen))
    assert in_order == [stream[index] for index in range(9)]
    assert len(seen) == 9 * small.group_size
    assert own["versions"]["trl"]


def test_a_lag_is_rejected(small):
    with pytest.raises(ValueError, match="lag"):
        trl_peer.train(RunRequest.of("trl", configuration("trl-grpo"), 0, 1, small))
