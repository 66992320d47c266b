"""The comparison of gradient steps on a tree, at toy size."""

import pytest
from learner_throughput import Workload
from prefix_forest import Trajectories, packed, run, table
from test_learner_throughput import TOY

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy

TREE = Trajectories(
    prompt_tokens=9, sampled_tokens=40, result_tokens=30, num_turns=2, branches=((0, 0), (0, 1), (1, 0)), row_tokens=600
)


def test_every_contender_takes_its_steps():
    result = run(TOY, TREE, repeats=1, threads=1)
    assert list(result["steps"]) == ["forest", "prompt", "unshared", "dense"]
    assert all(step["seconds"] > 0 for step in result["steps"].values())
    # Three trajectories of 2 turns, which are sequences of 49 and 119 tokens. Two of them share the first turn.
    assert result["tokens"] == {"trained": 3 * 80, "total": 3 * (49 + 119), "unique": 9 + 3 * 110 - 70}
    tokens = {name: step["tokens"] for name, step in result["steps"].items()}
    assert tokens["forest"] == 9 + 3 * 110 - 70 + 2  # two sequences have a copy of the token that they leave at
    assert tokens["prompt"] == 3 * (49 + 119) - 5 * 8
    assert tokens["unshared"] == 3 * (49 + 119)
    assert tokens["dense"] == 3 * 2 * 119
    assert table(result).row_count == 4


def test_contenders_compute_the_same_gradient(tmp_path):
    path = tmp_path / "model"
    work = Workload(**{**vars(TOY), "prompt_tokens": 200})
    work.make_model(path)
    trajectories = TREE.make(work.vocabulary)
    sequences = [sequence for own in trajectories for sequence in own]
    rows = packed(sequences, TREE.row_tokens)
    norms = []
    for own in rows.values():
        learner = Learner(Policy.load(path, "cpu", "float32"))
        learner.forward_backward(own, LossConfig())
        norms.append(learner.optim_step(0.0)["loss/grad_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-4) and norms[0] > 0
