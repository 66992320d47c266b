"""Data in fields that training doesn't read is rejected with its place; harmless fields are kept."""

from typing import Any

import pytest
from pydantic import ValidationError
from wire_data import choice, user

from tandem.rl.trajectories import TrajectoryGroup
from tandem.rl.unread_fields import ERROR_TYPE, FOR_LOG

QUESTION = user("1 + 6 = ?")
EXCHANGE = {"request": {"model": "m", "messages": [QUESTION]}, "response": {"choices": [choice("seven")]}}
TRAINED = {"messages_and_choices": [QUESTION, choice("seven")]}
WITHOUT_LOGPROBS = {**choice("seven"), "logprobs": None}
TOKENS = [{"token": "token_id:5", "logprob": -0.5}]


def of_trajectory(**fields: Any) -> dict[str, Any]:
    return {"trajectories": [fields]}


def of_choice(sampled: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return of_trajectory(messages_and_choices=[QUESTION, {**sampled, **fields}])


IN_CHOICE = ("trajectories", 0, "messages_and_choices", 1, "choice")
UNREAD = {
    "exchanges of a history": (
        of_trajectory(additional_histories=[{"messages_and_choices": [], "exchanges": [EXCHANGE]}]),
        ("trajectories", 0, "additional_histories", 0, "exchanges"),
    ),
    "messages under another name": (of_trajectory(messages=[QUESTION]), ("trajectories", 0, "messages")),
    "messages in camel case": (
        of_trajectory(**TRAINED, messagesAndChoices=[QUESTION]),
        ("trajectories", 0, "messagesAndChoices"),
    ),
    "completions": (of_trajectory(samples=[{"prompt": "a", "completion": "b"}]), ("trajectories", 0, "samples")),
    "tokens": (of_trajectory(messages_and_choices=[QUESTION], tokens=[5, 6]), ("trajectories", 0, "tokens")),
    "steps of an environment": (of_trajectory(steps=[{"action": [5]}]), ("trajectories", 0, "steps")),
    "a reward in the plural": (of_trajectory(**TRAINED, rewards=1.0), ("trajectories", 0, "rewards")),
    "a reward in upper case": (of_trajectory(**TRAINED, Reward=1.0), ("trajectories", 0, "Reward")),
    "an advantage": (of_trajectory(**TRAINED, advantage=0.5), ("trajectories", 0, "advantage")),
    "a weight": (of_trajectory(**TRAINED, weight=0), ("trajectories", 0, "weight")),
    "a mask": (of_choice(choice("seven"), loss_mask=[0, 1]), (*IN_CHOICE, "loss_mask")),
    "a turn that must not train": (of_choice(choice("seven"), train=False), (*IN_CHOICE, "train")),
    "a reward of a history": (
        of_trajectory(**TRAINED, additional_histories=[{**TRAINED, "reward": 1.0}]),
        ("trajectories", 0, "additional_histories", 0, "reward"),
    ),
    "rewards of a group": ({"trajectories": [], "rewards": [1.0]}, ("rewards",)),
    "a misspelt list of trajectories": ({"trajectories": [], "trajectorys": [TRAINED]}, ("trajectorys",)),
    "logprobs of another client": (
        of_choice(WITHOUT_LOGPROBS, compact_logprobs={"ids": [5]}),
        (*IN_CHOICE, "compact_logprobs"),
    ),
    "logprobs of text completions": (
        of_choice(choice("seven"), logprobs={"tokens": ["a"], "token_logprobs": [-0.5]}),
        (*IN_CHOICE, "logprobs", "tokens"),
    ),
    "logprobs on a message": (
        of_trajectory(messages_and_choices=[QUESTION, {"role": "assistant", "content": "7", "logprobs": TOKENS}]),
        ("trajectories", 0, "messages_and_choices", 1, "assistant", "logprobs"),
    ),
    "token ids on a message": (
        of_trajectory(messages_and_choices=[QUESTION, {"role": "assistant", "content": "7", "token_ids": [5]}]),
        ("trajectories", 0, "messages_and_choices", 1, "assistant", "token_ids"),
    ),
}
HARMLESS = {
    "an empty exchange": of_trajectory(**TRAINED, exchanges={"chat_completions": [], "messages": []}),
    "null": of_trajectory(**TRAINED, exchanges=None, messages=None, weight=None),
    "notes": of_trajectory(**TRAINED, run="a", tags=["x"], trace={"id": 7}, seconds=0.5),
    "a copy of the turns": of_trajectory(**TRAINED, messages=[QUESTION], steps=[{"role": "user"}]),
    "the error of a failed rollout": of_trajectory(errors=[{"type": "TimeoutError", "message": "too slow"}]),
    "exceptions of a group": {"trajectories": [], "exceptions": [{"type": "E", "message": "m", "traceback": "t"}]},
    "notes of a group": {"trajectories": [TRAINED], "metadata": {"weight": 2}, "metrics": {}, "logs": [], "task": {}},
    "what engines add": of_choice(choice("seven"), stop_reason=5, token_ids=None, weight=1, routed_experts="abc"),
    "a choice without logprobs": of_choice(choice("seven"), logprobs={"content": None, "refusal": None}),
    "a message with a name": of_trajectory(
        messages_and_choices=[QUESTION, {"role": "assistant", "content": "7", "logprobs": None, "weight": 0}]
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_data_in_a_field_that_is_not_read_is_rejected_there(case: str) -> None:
    body, place = UNREAD[case]
    with pytest.raises(ValidationError) as caught:
        TrajectoryGroup.model_validate(body)
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [(place, ERROR_TYPE)]


@pytest.mark.parametrize("case", HARMLESS)
def test_a_field_without_such_data_is_kept(case: str) -> None:
    body = HARMLESS[case]
    assert TrajectoryGroup.model_validate(body).model_dump(exclude_unset=True) == body


@pytest.mark.parametrize("case", UNREAD)
def test_a_log_may_carry_any_data(case: str) -> None:
    body, _ = UNREAD[case]
    assert TrajectoryGroup.model_validate(body, context=FOR_LOG).model_dump(exclude_unset=True) == body
