"""A job says what of it trains, and why the rest doesn't: each trajectory that was sent trains or has one reason."""

from typing import Any

import pytest
from wire_data import choice, group, load_tokenizer, user

from tandem.rl.batch import build_batch
from tandem.rl.config import TrainingConfig
from tandem.rl.reports.accounting import MAX_NAME, MAX_NAMES, REASONS, Account
from tandem.rl.trajectories import TrajectoryGroup

LIMIT = 128
QUESTION = user("1 + 6 = ?")
GOOD, BAD = choice("seven"), choice("six")
ASSISTANT = {"role": "assistant", "content": "seven"}
LONG = choice("seven " * LIMIT)


def account_of(*groups: TrajectoryGroup, **options: Any) -> Account:
    return build_batch(groups, load_tokenizer(), TrainingConfig(**options), LIMIT).account


def without_logprobs(sampled: dict[str, Any]) -> dict[str, Any]:
    return {**sampled, "logprobs": None}


TRAINED = group((1.0, [QUESTION, GOOD]), (0.0, [QUESTION, BAD]))
NOT_TRAINED = {  # reason: a group of trajectories of which none trains, and options of the job
    "empty": (group((1.0, []), (0.0, [])), {}),
    "no_choices": (group((1.0, [QUESTION, ASSISTANT]), (0.0, [QUESTION])), {}),
    "no_logprobs": (group((1.0, [QUESTION, without_logprobs(GOOD)]), (0.0, [QUESTION, without_logprobs(BAD)])), {}),
    "no_tokens": (
        group((1.0, [QUESTION, {**ASSISTANT, "content": ""}]), (0.0, [QUESTION, {**ASSISTANT, "content": None}])),
        {"allow_training_without_logprobs": True},
    ),
    "alone_in_group": (group((1.0, [QUESTION, GOOD])), {}),
    "equal_rewards": (group((0.1 + 0.2 + 0.3, [QUESTION, GOOD]), (0.3 + 0.2 + 0.1, [QUESTION, BAD])), {}),
    "too_long": (group((1.0, [QUESTION, LONG]), (0.0, [QUESTION, LONG])), {}),
}


@pytest.mark.parametrize("reason", NOT_TRAINED)
def test_a_job_that_trains_nothing_counts_its_trajectories_by_reason(reason: str) -> None:
    of_reason, options = NOT_TRAINED[reason]
    account = account_of(of_reason, **options)
    assert account.not_trained == {reason: len(of_reason.trajectories)}
    assert (account.num_groups, account.num_trajectories, account.num_sequences, account.num_tokens) == (0, 0, 0, 0)
    assert account.metrics()[f"data/step_num_trajectories_not_trained/{reason}"] == len(of_reason.trajectories)


@pytest.mark.parametrize("reason", NOT_TRAINED)
def test_what_trains_beside_it_is_counted_alone(reason: str) -> None:
    of_reason, options = NOT_TRAINED[reason]
    account, alone = account_of(TRAINED, of_reason, **options), account_of(TRAINED, **options)
    assert account.not_trained == {reason: len(of_reason.trajectories)}
    assert (account.num_groups, account.num_trajectories, account.num_sequences) == (1, 2, 2)
    assert account.num_tokens == alone.num_tokens > 0
    assert alone.not_trained == {}


def test_a_reward_of_the_mean_does_not_train() -> None:
    account = account_of(group((0.1, [QUESTION, GOOD]), (0.2, [QUESTION, BAD]), (0.3, [QUESTION, GOOD])))
    assert (account.num_trajectories, account.not_trained) == (2, {"mean_reward": 1})


def test_an_advantage_that_is_balanced_away_does_not_train_unless_another_term_does() -> None:
    account = account_of(TRAINED, advantage_balance=1.0)
    assert (account.num_trajectories, account.not_trained) == (1, {"balanced_away": 1})
    assert account.num_tokens == account_of(TRAINED).num_tokens - len(BAD["logprobs"]["content"])
    for term in ({"kl_penalty_coef": 0.1}, {"kimi_k2_tau": 0.1}):
        assert account_of(TRAINED, advantage_balance=1.0, **term).not_trained == {}
    lost = group((1.0, [QUESTION, GOOD]), (0.0, [QUESTION, LONG]))
    assert account_of(lost, advantage_balance=-1.0).not_trained == {"too_long": 1, "balanced_away": 1}


def test_the_first_reason_counts() -> None:
    of_both = group((1.0, [QUESTION, without_logprobs(GOOD)]), (1.0, []), (1.0, [QUESTION, GOOD]))
    assert account_of(of_both).not_trained == {"empty": 1, "no_logprobs": 1, "equal_rewards": 1}
    assert list(account_of(of_both).not_trained) == [r for r in REASONS if r in account_of(of_both).not_trained]


def test_every_trajectory_trains_or_has_a_reason() -> None:
    groups = [TRAINED, *(of_reason for of_reason, options in NOT_TRAINED.values() if not options)]
    account = account_of(*groups)
    assert account.num_trajectories + sum(account.not_trained.values()) == sum(len(g.trajectories) for g in groups)


def test_parts_left_out_of_trained_trajectories_are_counted() -> None:
    more = [user("Sure?"), without_logprobs(choice("yes")), user("Really?"), GOOD]
    history = {"messages_and_choices": [QUESTION, LONG]}
    body = group((1.0, [QUESTION, GOOD, *more]), (0.0, [QUESTION, BAD])).model_dump()
    body["trajectories"][1]["additional_histories"] = [history, history]
    account = account_of(TrajectoryGroup.model_validate(body))
    assert account.parts == {"choices_without_logprobs": 1, "sequences_too_long": 2}
    assert (account.num_trajectories, account.not_trained) == (2, {})


def test_a_placeholder_of_a_logprob_is_counted() -> None:
    sampled = choice("seven")
    sampled["logprobs"]["content"][0]["logprob"] = -9999.0
    of_placeholder = group((1.0, [QUESTION, sampled]), (0.0, [QUESTION, BAD]))
    assert account_of(of_placeholder).parts == {"tokens_without_logprobs": 1}
    assert account_of(of_placeholder, allow_training_without_logprobs=True).parts == {}


def test_trained_tokens_are_counted_by_what_changed_their_sampling() -> None:
    def marked(sampled: dict[str, Any], mark: Any) -> list[dict[str, Any]]:
        return [QUESTION, {**sampled, "sampled_with": mark}]

    number = len(GOOD["logprobs"]["content"])
    account = account_of(
        group(
            (1.0, marked(GOOD, {"top_p": 0.9, "temperature": 0.5, "made_up": 1})),
            (0.9, marked(GOOD, {})),
            (0.8, marked(GOOD, {"top_p": 0.5})),
            (0.2, [QUESTION, GOOD]),
            (0.1, marked(GOOD, "forged")),
            (0.0, marked(GOOD, ["top_k"])),
        ),
        group((1.0, marked(GOOD, {"top_k": 5})), (1.0, marked(GOOD, {"top_k": 5}))),  # doesn't train
    )
    assert account.sampled_with == {"temperature": number, "top_p": 2 * number, "unknown": 3 * number}
    assert account.metrics()["data/step_num_tokens_sampled_with/top_p"] == 2 * number


def test_ignored_fields_are_counted_by_name() -> None:
    body = TRAINED.model_dump() | {"task": "a", "logs": ["x"], "metadata": {"a": 1}}
    for trajectory in body["trajectories"]:
        trajectory |= {"run": "b", "nothing": None}
        trajectory["messages_and_choices"][1] |= {"stop_reason": 3, "engine": "c"}
    assert account_of(TrajectoryGroup.model_validate(body)).ignored_fields == {
        "group.task": 1,
        "trajectory.run": 2,
        "choice.engine": 2,
    }


def test_names_of_ignored_fields_are_few_short_and_printable() -> None:
    body = TRAINED.model_dump() | {f"{n}\n\x1b[31m{'x' * 1000}": 1 for n in range(100)}
    names = list(account_of(TrajectoryGroup.model_validate(body)).ignored_fields)
    assert 0 < len(names) <= MAX_NAMES
    assert all(name.isprintable() and len(name) < 2 * MAX_NAME for name in names)
