import torch

from tandem.cluster.learners.states.kept_states import KeptStates
from tandem.rl.checkpoints import LearnerState


def a_state(value: float) -> LearnerState:
    """Return a state of 1,000 bytes."""
    return LearnerState({"w": torch.full((100,), float(value))}, {"w.exp_avg": torch.zeros(150)})


def test_the_newest_states_stay_and_a_taken_one_is_removed():
    kept = KeptStates(max_bytes=2500)
    states = {name: a_state(index) for index, name in enumerate("abc")}
    for name, state in states.items():
        kept.put(name, state, [])
    assert kept.take("a") is None
    assert kept.take("c").state.adapter["w"] is states["c"].adapter["w"] and kept.take("c") is None
    kept.put("d", a_state(3), [])
    assert kept.take("b").state.adapter["w"] is states["b"].adapter["w"]


def test_a_state_that_is_put_again_is_the_newest():
    kept = KeptStates(max_bytes=2000)
    for name in "aba":
        kept.put(name, a_state(0), [])
    kept.put("c", a_state(0), [])
    assert kept.take("b") is None and kept.take("a") is not None


def test_a_state_that_is_too_large_is_not_kept():
    kept = KeptStates(max_bytes=999)
    kept.put("a", a_state(0), [-1.0])
    assert kept.take("a") is None
