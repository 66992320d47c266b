"""Exchanges become exact sequences in which each sampled token trains once. The numbers are worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
from exchange_data import (
    CALL,
    MESSAGE,
    POLICY,
    RESULT,
    captured,
    chat,
    chat_choice,
    completion,
    generation,
    logprobs,
    message,
    next_turn,
    prompt,
    response,
    sampled,
)
from wire_data import EOS, chat_tokenizer, encode

from tandem.rl.errors import TrajectoryError
from tandem.rl.sampled_trajectories import SampledTrajectory, sampled_trajectories
from tandem.rl.tokens.tokenizing import TokenizedSequence
from tandem.rl.trajectories import TrajectoryGroup

ASKED = prompt("How many?")
SEVEN, EIGHT = sampled("seven"), sampled("eight")
AFTER_SEVEN = next_turn([*ASKED, *SEVEN], "Sure?")
YES, NO = sampled("yes"), sampled("no")


def converted(**exchanges: list[dict[str, Any]]) -> SampledTrajectory:
    [found] = sampled_trajectories(0, TrajectoryGroup(trajectories=[captured(**exchanges)]), chat_tokenizer())
    return found


def sequences(allow: bool = False, **exchanges: list[dict[str, Any]]) -> list[TokenizedSequence]:
    return converted(**exchanges).tokenize(chat_tokenizer(), allow, (0, 0))[0]


def num_repeated(**exchanges: list[dict[str, Any]]) -> int:
    return converted(**exchanges).tokenize(chat_tokenizer(), False, (0, 0))[1]


def trained(sequence: TokenizedSequence) -> list[int]:
    return sequence.token_ids[sequence.loss_mask].tolist()


def refusal(**exchanges: list[dict[str, Any]]) -> TrajectoryError:
    with pytest.raises(TrajectoryError) as caught:
        group = TrajectoryGroup(trajectories=[captured(), captured(**exchanges)])
        sampled_trajectories(4, group, chat_tokenizer())
    assert (caught.value.group, caught.value.trajectory) == (4, 1)
    return caught.value


BOTH_TURNS = {
    "chat_completions": [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES)],
    "completions": [completion(0, ASKED, SEVEN), completion(2, AFTER_SEVEN, YES)],
    "responses": [response(0, [generation(ASKED, SEVEN, 0)]), response(2, [generation(AFTER_SEVEN, YES, 0)])],
    "messages": [message(0, ASKED, SEVEN), message(2, AFTER_SEVEN, YES)],
}


@pytest.mark.parametrize("protocol", BOTH_TURNS)
@pytest.mark.parametrize("reverse", (False, True))
def test_a_turn_that_begins_with_the_last_one_continues_it(protocol, reverse):
    [one] = sequences(**{protocol: BOTH_TURNS[protocol][:: -1 if reverse else 1]})
    assert one.token_ids.tolist() == [*AFTER_SEVEN, *YES]
    assert trained(one) == [*SEVEN, *YES]
    assert one.sampling_logprobs[one.loss_mask].tolist() == [*logprobs(SEVEN), *logprobs(YES)]
    assert one.choice_offsets == (len(ASKED), len(AFTER_SEVEN))
    assert converted(**{protocol: BOTH_TURNS[protocol]}).policy_version == 3


def test_turns_at_the_same_time_are_in_the_order_of_their_ends():
    first, second = chat(0, ASKED, SEVEN), chat(0, AFTER_SEVEN, YES)
    first["end_time"], second["end_time"] = second["start_time"], first["end_time"]
    assert len(sequences(chat_completions=[second, first])) == 1


def test_protocols_of_one_trajectory_all_train():
    found = sequences(**{protocol: turns[:1] for protocol, turns in BOTH_TURNS.items()})
    # The same tokens after the same tokens count once, whichever protocol sampled them.
    assert [trained(one) for one in found] == [SEVEN]
    mixed = {
        "chat_completions": [chat(0, ASKED, SEVEN)],
        "messages": [message(2, AFTER_SEVEN, YES)],
        "completions": [completion(4, ASKED, NO)],
    }
    assert sorted(map(trained, sequences(**mixed))) == sorted([SEVEN, YES, NO])


def test_two_turns_after_one_are_branches():
    other = next_turn([*ASKED, *SEVEN], "Why?")
    turns = [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES), chat(4, other, NO)]
    one, branch = sequences(chat_completions=turns)
    assert one.token_ids.tolist() == [*AFTER_SEVEN, *YES]
    assert branch.token_ids.tolist() == [*other, *NO]
    assert (trained(one), trained(branch)) == ([*SEVEN, *YES], NO)


def test_the_longest_sequence_is_continued():
    after_yes = next_turn([*AFTER_SEVEN, *YES], "Really?")
    other_start = [*ASKED, *SEVEN, *encode("\n")]
    turns = [chat(0, ASKED, SEVEN), completion(1, other_start, NO), chat(2, AFTER_SEVEN, YES), chat(4, after_yes, NO)]
    found = sequences(chat_completions=[turns[0], turns[2], turns[3]], completions=[turns[1]])
    assert [trained(one) for one in found] == [[*SEVEN, *YES, *NO], NO]


def test_a_template_that_drops_thinking_splits_the_conversation():
    thought = [*encode("<think>six? no</think>"), *SEVEN]
    turns = [chat(0, ASKED, thought), chat(2, AFTER_SEVEN, YES)]  # the second prompt has the answer alone
    one, other = sequences(chat_completions=turns)
    assert (one.token_ids.tolist(), trained(one)) == ([*ASKED, *thought], thought)
    assert (other.token_ids.tolist(), trained(other)) == ([*AFTER_SEVEN, *YES], YES)


def test_a_history_that_was_tokenised_differently_splits_too():
    letters = [*(encode(letter)[0] for letter in "seven"), EOS]
    one, other = sequences(chat_completions=[chat(0, ASKED, letters), chat(2, AFTER_SEVEN, YES)])
    assert (trained(one), trained(other)) == (letters, YES)


@pytest.mark.parametrize(
    "context",
    (
        {"tools": [{"type": "function", "function": {"name": "look"}}]},
        {"chat_template_kwargs": {"preserve_thinking": True}},
        {"chat_template": "{{ messages }}"},
    ),
)
def test_turns_with_another_context_dont_continue_each_other(context):
    turns = [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES, **context)]
    assert [trained(one) for one in sequences(chat_completions=turns)] == [SEVEN, YES]
    both = [chat(0, ASKED, SEVEN, **context), chat(2, AFTER_SEVEN, YES, **context)]
    assert [trained(one) for one in sequences(chat_completions=both)] == [[*SEVEN, *YES]]
    empty = [chat(0, ASKED, SEVEN, tools=[]), chat(2, AFTER_SEVEN, YES, tools=None)]
    assert len(sequences(chat_completions=empty)) == 1


def test_several_choices_become_siblings_of_which_each_may_continue():
    after_eight = next_turn([*ASKED, *EIGHT], "Sure?")
    turns = [chat(0, ASKED, SEVEN, EIGHT), chat(2, after_eight, NO), chat(4, AFTER_SEVEN, YES)]
    found = sequences(chat_completions=turns)
    assert [trained(one) for one in found] == [[*SEVEN, *YES], [*EIGHT, *NO]]
    # After a turn that is there already, the first choice continues its sequence, the second repeats it as context.
    after = [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES, NO)]
    one, other = sequences(chat_completions=after)
    assert (trained(one), trained(other)) == ([*SEVEN, *YES], NO)
    assert other.token_ids.tolist() == [*AFTER_SEVEN, *NO]


def test_choices_are_in_the_order_of_their_index():
    turns = [chat(0, ASKED, SEVEN, EIGHT)]
    turns[0]["response"]["choices"].reverse()
    assert [trained(one) for one in sequences(chat_completions=turns)] == [SEVEN, EIGHT]


def test_a_token_that_came_twice_trains_once():
    twice = {"chat_completions": [chat(0, ASKED, SEVEN), chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES)]}
    assert [trained(one) for one in sequences(**twice)] == [[*SEVEN, *YES]]
    assert num_repeated(**twice) == len(SEVEN)
    late = {"chat_completions": [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES), chat(4, AFTER_SEVEN, YES)]}
    assert [trained(one) for one in sequences(**late)] == [[*SEVEN, *YES]]
    assert num_repeated(**late) == len(YES)


def test_choices_with_a_common_beginning_train_it_once():
    first, second = [*encode("sev"), *encode("en"), EOS], [*encode("sev"), *encode("er"), EOS]
    turns = {"chat_completions": [chat(0, ASKED, first, second)]}
    one, other = sequences(**turns)
    shared = len(encode("sev"))
    assert (trained(one), trained(other)) == (first, second[shared:])
    assert other.token_ids.tolist() == [*ASKED, *second]
    assert other.sampling_logprobs[other.loss_mask].tolist() == logprobs(second)[shared:]
    assert num_repeated(**turns) == shared


def test_the_same_tokens_of_two_versions_are_two_samples():
    turns = [chat(0, ASKED, SEVEN), chat(2, ASKED, SEVEN)]
    turns[1]["response"]["choices"][0]["policy_version"] = 4
    assert [trained(one) for one in sequences(chat_completions=turns)] == [SEVEN, SEVEN]
    assert converted(chat_completions=turns).policy_version == 3


def test_versions_of_one_conversation_train_as_one_sequence():
    turns = [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES)]
    turns[0]["response"]["choices"][0]["policy_version"] = 5
    turns[1]["response"]["choices"][0]["policy_version"] = 6
    assert [trained(one) for one in sequences(chat_completions=turns)] == [[*SEVEN, *YES]]
    assert converted(chat_completions=turns).policy_version == 5


@pytest.mark.parametrize(
    "name",
    (
        *(
            POLICY,
            f"{POLICY}:step12",
            f"{POLICY}@12",
            f"wandb-artifact:///{POLICY}",
            f"wandb-artifact:///{POLICY}:step0",
        ),
        *("agent", "agent:step3", "agent@3"),
    ),
)
def test_all_names_of_the_policy_train_together(name):
    turns = [chat(0, ASKED, SEVEN), chat(2, AFTER_SEVEN, YES, model=name)]
    assert [trained(one) for one in sequences(chat_completions=turns)] == [[*SEVEN, *YES]]


OTHERS = (
    "judge",
    "team/project/agent2",
    "team/other/agent",
    "other/project/agent",
    "agent:stepx",
    "agent:step",
    "Agent",
)


@pytest.mark.parametrize("name", OTHERS)
def test_exchanges_of_other_models_are_counted_and_not_read(name):
    judge = chat(1, [10**9], [], model=name)
    judge["response"] = {"model": POLICY, "choices": "anything"}
    found = converted(chat_completions=[chat(0, ASKED, SEVEN), judge, chat(2, AFTER_SEVEN, YES)])
    assert found.exchanges.num_of_others == 1
    assert [trained(one) for one in found.tokenize(chat_tokenizer(), False, (0, 0))[0]] == [[*SEVEN, *YES]]


def test_a_request_without_a_model_has_that_of_its_answer():
    turn = chat(0, ASKED, SEVEN, model=None)
    turn["response"]["model"] = f"{POLICY}:step2"
    assert [trained(one) for one in sequences(chat_completions=[turn])] == [SEVEN]
    turn["request"]["model"] = ["not a name"]
    assert [trained(one) for one in sequences(chat_completions=[turn])] == [SEVEN]
    del turn["request"]["model"], turn["response"]["model"]
    assert refusal(chat_completions=[turn]).field == ("request", "model")


def test_a_pinned_name_is_the_version_if_the_answer_has_none():
    turn = chat(0, ASKED, SEVEN, model=f"{POLICY}:step7")
    del turn["response"]["choices"][0]["policy_version"]
    assert converted(chat_completions=[turn]).policy_version == 7


def test_a_trajectory_of_other_models_alone_is_refused_with_their_names():
    error = refusal(chat_completions=[chat(0, ASKED, SEVEN, model="judge")], messages=[])
    assert (error.field, error.location[-1]) == (("exchanges",), "exchanges")
    assert "'judge'" in error.reason
    assert POLICY in error.reason


def test_an_answer_of_several_generations_is_one_sequence():
    called, result = sampled("call"), encode("\n<tool>3</tool>\n")
    after = [*ASKED, *called, *result]
    output = [CALL, RESULT, MESSAGE]
    turn = response(0, [generation(ASKED, called, 0), generation(after, SEVEN, 2)], output)
    [one] = sequences(responses=[turn])
    assert one.token_ids.tolist() == [*after, *SEVEN]
    assert trained(one) == [*called, *SEVEN]  # the tool's result isn't trained


def test_a_loop_of_tools_is_one_sequence():
    """Reasoning, two calls at once, their results, an answer; tools are the same in each request."""
    tools = [{"type": "function", "function": {"name": "add"}}]
    context, turns, expected = ASKED, [], []
    for step in range(4):
        answer = sampled(f"<call>{step}</call><call>{step + 1}</call>")
        turns.append(chat(step, context, answer, tools=tools))
        context = [*context, *answer, *encode(f"\n<tool>{2 * step}</tool><tool>1</tool>\n")]
        expected += answer
    [one] = sequences(chat_completions=turns)
    assert trained(one) == expected
    assert len(one.choice_offsets) == 4


def test_a_streamed_choice_has_its_version_in_its_spans():
    """The client's capture keeps neither policy_version nor sampled_with of a stream."""
    turn = chat(0, ASKED, SEVEN, temperature=0.5)
    choice = turn["response"]["choices"][0]
    del choice["policy_version"], choice["sampled_with"], choice["prompt_token_ids"]
    span = {"start_token": 0, "end_token": len(SEVEN), "generation_id": "d", "policy_version": 9}
    choice["policy_token_spans"] = [{**span, "lora_slot": POLICY, "update_seq": 9}]
    turn["response"]["prompt_token_ids"] = ASKED
    assert converted(chat_completions=[turn]).policy_version == 9
    [one] = sequences(chat_completions=[turn])
    assert one.sampled_with == (("temperature", len(SEVEN)),)  # from the request


def test_marks_of_the_service_are_counted():
    turn = chat(0, ASKED, SEVEN)
    turn["response"]["choices"][0]["sampled_with"] = {"top_p": 0.5}
    [one] = sequences(chat_completions=[turn])
    assert one.sampled_with == (("top_p", len(SEVEN)),)


def test_tokens_written_as_ids_are_exact():
    turn = chat(0, ASKED, SEVEN)
    choice = turn["response"]["choices"][0]
    for entry, id_ in zip(choice["logprobs"]["content"], choice.pop("token_ids"), strict=True):
        entry["token"] = f"token_id:{id_}"
    plain = completion(0, ASKED, EIGHT)
    raw = plain["response"]["choices"][0]
    raw["logprobs"]["tokens"] = [f"token_id:{id_}" for id_ in raw.pop("token_ids")]
    assert [trained(one) for one in sequences(chat_completions=[turn], completions=[plain])] == [SEVEN, EIGHT]


def test_an_echoed_prompt_is_context():
    turn = completion(0, ASKED, SEVEN, echo=True)
    columns = turn["response"]["choices"][0]["logprobs"]
    columns["token_logprobs"] = [None, *([-9.0] * (len(ASKED) - 1)), *columns["token_logprobs"]]
    columns["tokens"] = ["x"] * (len(ASKED) + len(SEVEN))
    [one] = sequences(completions=[turn])
    assert trained(one) == SEVEN
    assert one.sampling_logprobs[one.loss_mask].tolist() == logprobs(SEVEN)
    only_prompt = completion(0, ASKED, SEVEN, echo=True, max_tokens=0)
    assert sequences(completions=[only_prompt]) == []


def test_prompts_of_one_request_are_sequences_of_their_own():
    turn = completion(0, ASKED, SEVEN, EIGHT)
    turn["response"]["choices"][1]["prompt_token_ids"] = prompt("Another?")
    assert [one.token_ids.tolist() for one in sequences(completions=[turn])] == [
        [*ASKED, *SEVEN],
        [*prompt("Another?"), *EIGHT],
    ]


@pytest.mark.parametrize("protocol", BOTH_TURNS)
def test_without_logprobs_a_turn_trains_only_if_the_job_allows_it(protocol):
    turn = BOTH_TURNS[protocol][0]
    answer = {
        "chat_completions": lambda: {"choices": [{**turn["response"]["choices"][0], "logprobs": None}]},
        "completions": lambda: {"choices": [{**turn["response"]["choices"][0], "logprobs": None}]},
        "responses": lambda: {
            "token_generations": [
                {**turn["response"]["token_generations"][0], "output_tokens": [{"token_id": id_} for id_ in SEVEN]}
            ]
        },
        "messages": lambda: {"logprobs": None},
    }[protocol]()
    without = {protocol: [{**turn, "response": {**turn["response"], **answer}}]}
    assert sequences(**without) == []
    [one] = sequences(allow=True, **without)
    assert trained(one) == SEVEN
    assert one.sampling_logprobs.isnan().all()


def with_answer(turn: dict[str, Any], *path: str | int, value: Any) -> dict[str, Any]:
    """Return a copy of an exchange whose answer has another value at a path; ... removes it."""
    if not path:
        return turn
    key, *rest = path
    changed = list(turn) if isinstance(turn, list) else dict(turn)
    if rest:
        changed[key] = with_answer(changed[key], *rest, value=value)
    elif value is ...:
        del changed[key]
    else:
        changed[key] = value
    return changed


OF_CHOICE = ("response", "choices", 0)
OF_GENERATION = ("response", "token_generations", 0)
INEXACT = {
    "chat without ids": ("chat_completions", (*OF_CHOICE, "token_ids"), ..., None),
    "chat with null for ids": ("chat_completions", (*OF_CHOICE, "token_ids"), None, None),
    "chat without the prompt": ("chat_completions", (*OF_CHOICE, "prompt_token_ids"), ..., None),
    "chat with an empty prompt": ("chat_completions", (*OF_CHOICE, "prompt_token_ids"), [], None),
    "chat with too few ids": ("chat_completions", (*OF_CHOICE, "token_ids"), SEVEN[:-1], None),
    "chat with an id beyond the vocabulary": (
        *("chat_completions", (*OF_CHOICE, "token_ids"), [*SEVEN[:-1], 10**6]),
        (*OF_CHOICE, "token_ids", len(SEVEN) - 1),
    ),
    "chat with text for an id": (
        *("chat_completions", (*OF_CHOICE, "token_ids"), ["a", *SEVEN[1:]]),
        (*OF_CHOICE, "token_ids", 0),
    ),
    "chat with no choices": ("chat_completions", ("response", "choices"), None, None),
    "a logprob above 0": (
        *("chat_completions", (*OF_CHOICE, "logprobs", "content", 0, "logprob"), 0.5),
        (*OF_CHOICE, "logprobs", "content", 0, "logprob"),
    ),
    "completions without ids": ("completions", (*OF_CHOICE, "token_ids"), ..., None),
    "completions without the prompt": ("completions", (*OF_CHOICE, "prompt_token_ids"), ..., None),
    "completions with too few logprobs": (
        *("completions", (*OF_CHOICE, "logprobs", "token_logprobs"), [-1.0]),
        (*OF_CHOICE, "logprobs", "token_logprobs"),
    ),
    "completions with logprobs in words": (
        *("completions", (*OF_CHOICE, "logprobs", "token_logprobs"), ["-1"] * len(SEVEN)),
        (*OF_CHOICE, "logprobs", "token_logprobs"),
    ),
    "responses without generations": ("responses", ("response", "token_generations"), ..., None),
    "responses with an item of no generation": (
        *("responses", ("response", "output"), [MESSAGE, MESSAGE]),
        ("response", "token_generations"),
    ),
    "responses without the prompt": ("responses", (*OF_GENERATION, "prompt_token_ids"), ..., None),
    "responses without tokens": ("responses", (*OF_GENERATION, "output_tokens"), ..., None),
    "responses with an empty list of tokens": ("responses", (*OF_GENERATION, "output_tokens"), [], None),
    "responses without an id": (
        *("responses", (*OF_GENERATION, "output_tokens", 0, "token_id"), ...),
        (*OF_GENERATION, "output_tokens", "token_id"),
    ),
    "responses with a wrong item": ("responses", (*OF_GENERATION, "output_indices"), [1], None),
    "messages without ids": ("messages", ("response", "token_ids"), ..., None),
    "messages with no ids": ("messages", ("response", "token_ids"), [], None),
    "messages without the prompt": ("messages", ("response", "prompt_token_ids"), ..., None),
    "messages with too many logprobs": ("messages", ("response", "logprobs"), [-1.0] * 9, None),
}


@pytest.mark.parametrize("case", INEXACT)
def test_a_turn_without_exact_tokens_is_refused_with_its_place(case):
    protocol, path, value, place = INEXACT[case]
    first, second = BOTH_TURNS[protocol]
    error = refusal(**{protocol: [second, with_answer(first, *path, value=value)]})
    assert (error.protocol, error.turn, error.field) == (protocol, 1, place or path)
    assert error.location == ("trajectory_groups", 4, "trajectories", 1, "exchanges", protocol, 1, *(place or path))
    assert f"{protocol} exchange 1" in str(error)


def test_choices_with_one_index_are_refused():
    turn = chat(0, ASKED, SEVEN, EIGHT)
    turn["response"]["choices"][1]["index"] = 0
    assert refusal(chat_completions=[turn]).field == ("response", "choices", 1, "index")


def test_a_turn_that_sampled_nothing_is_no_turn():
    empty = chat_choice([], message={"role": "assistant", "content": ""}, prompt_token_ids=ASKED)
    turn = chat(0, ASKED)
    turn["response"]["choices"] = [empty]
    assert sequences(chat_completions=[turn]) == []
