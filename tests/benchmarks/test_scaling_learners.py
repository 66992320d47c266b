"""One and two learners take the same gradient steps in processes of their own."""

from learner_throughput import Workload
from queueing.measure_learners import measure_learners


def test_steps_are_timed_and_the_efficiency_follows():
    small = Workload(
        num_groups=2, group_size=2, prompt_tokens=24, completion_tokens=8, spread_tokens=2, hidden=32, num_layers=2,
        num_heads=2, num_key_value_heads=1, head_dim=16, intermediate=64, vocabulary=128,
    )  # fmt: skip
    found = {}
    measure_learners(found, lambda what: None, small, rounds=1, steps=1)
    (one,), (two,) = found["seconds"]["1"], found["seconds"]["2"]
    assert found["efficiency"] == one / two / 2 > 0
