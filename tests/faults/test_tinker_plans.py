"""Plans of training loops, and what a campaign finds in their outcomes."""

from tinker_calls import Answer, Outcome, check_counts, differences, draw


def outcome(plan, **changes):
    answers = [
        Answer(number, "optim_step", {"optimizer_step": float(number + 1)}) for number in range(len(plan.rounds))
    ]
    return Outcome("run", answers, **changes)


def versions(plan):
    return [(step, "d") for step in range(1, 1 + sum(planned.saves_for_sampler for planned in plan.rounds))]


def test_a_seed_makes_one_plan_that_saves_at_the_end():
    plan = draw(3, 7)
    assert repr(plan) == repr(draw(3, 7)) != repr(draw(4, 7))
    assert plan.rounds[-1].saves_state and plan.rounds[-1].saves_for_sampler
    assert not all(planned.saves_for_sampler for planned in plan.rounds)


def test_equal_outcomes_have_no_differences():
    plan = draw(3, 4)
    assert differences(plan, outcome(plan), outcome(plan)) == []
    assert check_counts(plan, outcome(plan), versions(plan)) == []


def test_a_lost_a_doubled_and_another_answer_are_found():
    plan = draw(3, 4)
    lost, doubled, other = outcome(plan), outcome(plan), outcome(plan)
    del lost.answers[-1]
    doubled.answers.insert(1, doubled.answers[0])
    other.answers[2] = Answer(2, "optim_step", {"optimizer_step": 4.0})
    for found in (lost, doubled, other):
        assert differences(plan, outcome(plan), found)
        assert check_counts(plan, found, versions(plan))
    assert check_counts(plan, outcome(plan), [*versions(plan), (99, "d")])
