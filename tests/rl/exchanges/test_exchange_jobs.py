"""Jobs of exchanges: the tokens of a conversation are those of the other wire form, and the counts add up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from exchange_data import POLICY, captured, captured_group, chat, chat_choice, message, next_turn, prompt, sampled
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_data import EOS, choice, encode, load_tokenizer, user

from tandem.rl.batch import TrainingBatch, build_batch
from tandem.rl.config import TrainingConfig
from tandem.rl.trajectories import Trajectory, TrajectoryGroup

ASKED = prompt("How many?")
SEVEN, EIGHT = sampled("seven"), sampled("eight")
AFTER_SEVEN = next_turn([*ASKED, *SEVEN], "Sure?")
YES = sampled("yes")
LIMIT = 512
TOKENIZER = load_tokenizer()


def batch_of(*groups: TrajectoryGroup, limit: int = LIMIT, **options: Any) -> TrainingBatch:
    return build_batch(groups, TOKENIZER, TrainingConfig(**options), limit)


def rows(batch: TrainingBatch) -> list[tuple[list[int], list[bool], list[float]]]:
    return [
        (row.token_ids.tolist(), row.is_trained.tolist(), row.sampling_logprobs.nan_to_num(9.0).tolist())
        for row in batch.sequences
    ]


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[list[int], list[int]]]:
    """Draw (prompt, sampled tokens) of each turn. A turn may drop what came before, as templates do with thinking."""
    ids = st.lists(st.integers(5, 400), min_size=1, max_size=6)
    turns: list[tuple[list[int], list[int]]] = []
    so_far: list[int] = draw(ids)
    for _ in range(draw(st.integers(1, 5))):
        answer = [*draw(ids), EOS]
        turns.append((so_far, answer))
        kept = answer if draw(st.booleans()) else answer[-1:]
        so_far = [*so_far, *kept, *draw(ids)]
    return turns


@settings(max_examples=60, deadline=None)
@given(conversations(), conversations())
def test_a_conversation_trains_the_same_tokens_in_both_wire_forms(one, other):
    def as_exchanges(turns, reward):
        return captured(
            reward, chat_completions=[chat(at, context, answer) for at, (context, answer) in enumerate(turns)]
        )

    def as_choices(turns, reward):
        items = [[user("x"), chat_choice(answer, prompt_token_ids=context)] for context, answer in turns]
        flat = [item for pair in items for item in pair]
        return Trajectory.model_validate({"messages_and_choices": flat, "reward": reward})

    exchanges, choices = (
        batch_of(captured_group(make(one, 1.0), make(other, 0.0))) for make in (as_exchanges, as_choices)
    )
    assert rows(exchanges) == rows(choices)
    assert exchanges.metrics() == choices.metrics()
    assert exchanges.sampled_versions == choices.sampled_versions == (3, 3)


def test_what_is_left_out_or_repeated_is_counted():
    turns = [chat(0, ASKED, SEVEN), chat(0, ASKED, SEVEN), chat(1, [1], [2], model="judge")]
    batch = batch_of(
        captured_group(captured(1.0, chat_completions=turns), captured(0.0, messages=[message(0, ASKED, EIGHT)]))
    )
    assert batch.account.parts == {"tokens_repeated": len(SEVEN), "exchanges_of_other_models": 1}
    assert batch.account.num_tokens == len(SEVEN) + len(EIGHT)
    assert batch.metrics()["data/step_num_exchanges_of_other_models"] == 1
    assert (batch.account.untrainable, batch.account.num_retokenised) == ({}, 0)


def test_tokens_that_cant_train_are_counted_by_reason_whatever_their_reward():
    without = chat(2, AFTER_SEVEN, YES)
    without["response"]["choices"][0]["logprobs"] = None
    long = sampled("eight " * 40)
    group = captured_group(
        captured(1.0, chat_completions=[chat(0, ASKED, SEVEN), without]),
        captured(0.0, chat_completions=[chat(0, ASKED, long), chat(4, prompt("Why?"), EIGHT)]),
        captured(0.5, chat_completions=[without]),
    )
    account = batch_of(group, limit=len(AFTER_SEVEN) + 10).account
    assert account.untrainable == {"no_logprobs": 2 * len(YES), "too_long": len(long)}
    assert account.not_trained == {"no_logprobs": 1}
    assert account.metrics()["tokens/untrainable"] == 2 * len(YES) + len(long)
    assert account.metrics()["tokens/untrainable/too_long"] == len(long)
    equal = captured_group(*(captured(1.0, chat_completions=[chat(0, ASKED, SEVEN)]) for _ in range(2)))
    assert batch_of(equal).account.metrics()["tokens/untrainable"] == 0  # their advantage is 0, but they could train


def test_only_text_without_ids_counts_as_retokenised():
    exact = choice("seven")
    text = {"finish_reason": "stop", "index": 0, "message": {"role": "assistant", "content": "eight"}}
    group = TrajectoryGroup.model_validate(
        {
            "trajectories": [
                {"messages_and_choices": [user("a"), exact, user("b"), text], "reward": 1.0},
                {"messages_and_choices": [user("a"), {"role": "assistant", "content": "written"}], "reward": 0.0},
            ]
        }
    )
    assert batch_of(group).account.num_retokenised == 0
    account = batch_of(group, allow_training_without_logprobs=True).account
    assert account.num_retokenised == len(encode("eight"))
    assert account.metrics()["tokens/retokenised"] == len(encode("eight"))


def test_exchanges_without_logprobs_train_if_the_job_allows_it():
    turn = chat(0, ASKED, SEVEN)
    turn["response"]["choices"][0]["logprobs"] = None
    group = captured_group(
        captured(1.0, chat_completions=[turn]), captured(0.0, chat_completions=[chat(0, ASKED, EIGHT)])
    )
    account = batch_of(group, allow_training_without_logprobs=True).account
    assert account.num_tokens == len(SEVEN) + len(EIGHT)
    assert (account.num_retokenised, account.untrainable) == (0, {})


def test_a_group_of_exceptions_has_nothing_to_train():
    failed = TrajectoryGroup.model_validate_json(
        json.dumps({"exceptions": [{"type": "TimeoutError", "message": "slow", "traceback": "..."}]})
    )
    assert failed.trajectories == []
    batch = batch_of(failed, captured_group(captured(1.0, chat_completions=[chat(0, ASKED, SEVEN)])))
    assert (batch.num_groups, batch.num_trajectories) == (2, 1)


def test_an_omitted_reward_is_zero():
    assert Trajectory.model_validate({"exchanges": {"chat_completions": [chat(0, ASKED, SEVEN)]}}).reward == 0.0


def test_notes_on_an_exchange_are_reported_as_ignored():
    noted = captured(1.0, chat_completions=[{**chat(0, ASKED, SEVEN), "note": "a"}])
    assert batch_of(captured_group(noted)).account.ignored_fields == {"exchange.note": 1}


def test_a_policy_that_isnt_known_is_asked_for():
    group = TrajectoryGroup.model_validate(
        {"trajectories": [{"exchanges": {"chat_completions": [chat(0, ASKED, SEVEN)]}}]}
    )
    with pytest.raises(ValueError, match="which model is trained"):
        batch_of(group)
    assert group.trajectories[0].exchanges is not None
    group.trajectories[0].exchanges.of_policy(POLICY)
    assert batch_of(group).num_trajectories == 1
