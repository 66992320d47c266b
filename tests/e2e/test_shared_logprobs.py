"""Learner and engine of the real service share the logprobs that a job needs, and they agree."""

import math

from helpers import inference_name, register, roll_out, train

TOLERANCE = 1e-3  # the service's default, in float32


def gradient_steps(events):
    return [event["data"] for event in events if event["type"] == "gradient_step"]


def groups_of(openai, name):
    """Return trajectories of several prompts as one group, enough rows for both learner and engine.

    The model gives many answers to these prompts, so training always moves it away from version 0.
    """
    return [t for number in (4, 12, 25) for t in roll_out(openai, name, prompt=f"What is {number} plus 4?")]


def assert_both_scored(step):
    assert 0 < step["logprobs/engine_share"] < 1
    assert math.isclose(step["logprobs/engine_share"] + step["logprobs/learner_share"], 1)
    mean, largest = (step[f"logprobs/engine_learner_abs_diff_{kind}"] for kind in ("mean", "max"))
    assert 0 <= mean <= largest < TOLERANCE  # on some machines they agree exactly
    assert step["logprobs/seconds"] > 0


def test_old_logprobs_are_computed_by_both(service, http):
    openai, model = service.openai(), register(http)
    trajectories = groups_of(openai, inference_name(model))
    events = train(http, model, trajectories, precalculate_logprobs=True, packed_sequence_length=128)
    assert "logprobs_rescored" not in {event["type"] for event in events}
    assert events[0]["data"]["policy_lag/max"] == 0
    first, *later = gradient_steps(events)
    assert later
    assert_both_scored(first)
    assert not any("logprobs/engine_share" in step for step in later)
    # The policy hasn't changed yet, so its logprobs equal the old ones.
    assert math.isclose(first["loss/ratio_mean"], 1, abs_tol=1e-3)
    assert first["logprobs/sampled_current_abs_diff_max"] < TOLERANCE
    assert "logprobs/sampled_current_abs_diff_max" not in later[0]


def test_the_kl_to_version_0_grows_as_the_policy_leaves_it(service, http):
    openai, model = service.openai(), register(http)
    kl = {"kl_penalty_coef": 0.1, "kl_penalty_reference_step": 0, "kl_penalty_source": "current_learner"}
    means = []
    for _ in range(2):
        events = train(http, model, groups_of(openai, inference_name(model)), learning_rate=2e-2, **kl)
        first = gradient_steps(events)[0]
        assert_both_scored(first)
        assert {"policy_lag/mean", "policy_lag/max"} <= events[0]["data"].keys()
        means.append(first["loss/kl_policy_ref"])
    assert abs(means[0]) < 1e-4  # version 0 against itself
    assert abs(means[1]) > 1e-3


def test_stale_trajectories_are_told_from_fresh_ones(service, http):
    openai, model = service.openai(), register(http)
    stale = roll_out(openai, inference_name(model, 0))
    train(http, model, stale)
    events = train(http, model, stale)
    assert events[0]["data"]["policy_lag/mean"] == events[0]["data"]["policy_lag/max"] == 1
    assert "logprobs/sampled_current_abs_diff_mean" not in gradient_steps(events)[0]
