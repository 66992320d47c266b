import copy
import json
import pickle

import pytest
from pydantic import ValidationError
from wire_data import choice, inlined, packing_vectors, published_schemas, user

from tandem.rl.errors import ConfigError, TrajectoryError
from tandem.rl.trajectories import Choice, Trajectory, TrajectoryGroup


def errors(*messages_and_choices: object, **trajectory: object) -> list[tuple[tuple[int | str, ...], str]]:
    """Return (place below the trajectory, message) of each fault of a trajectory."""
    body = {"trajectories": [{"messages_and_choices": list(messages_and_choices), **trajectory}]}
    with pytest.raises(ValidationError) as caught:
        TrajectoryGroup.model_validate(body)
    found = caught.value.errors(include_url=False)
    assert all(error["loc"][:2] == ("trajectories", 0) for error in found)
    return [(error["loc"][2:], error["msg"]) for error in found]


def test_the_schema_is_the_published_one():
    ours = TrajectoryGroup.model_json_schema()
    published = published_schemas()
    assert inlined(ours, ours["$defs"]) == inlined(published["TrajectoryGroup"], published)


def test_what_the_client_posts_is_read_without_loss():
    for case in packing_vectors():
        for body in case["trajectory_groups"]:
            group = TrajectoryGroup.model_validate(copy.deepcopy(body))
            assert json.loads(group.model_dump_json(exclude_unset=True)) == body


def test_nulls_and_unknown_keys_are_kept():
    message = {"role": "assistant", "content": None, "name": None, "tool_calls": None, "trace": {"id": 7}}
    trajectory = Trajectory.model_validate(
        {"messages_and_choices": [message, choice("yes", policy_version=3)], "start_time": None, "run": "a"}
    )
    assert trajectory.messages_and_choices[0] == message
    assert trajectory.messages_and_choices[1].policy_version == 3
    assert trajectory.run == "a"


def test_a_choice_is_told_by_its_keys_and_keeps_the_order_of_a_tool():
    tool = {"type": "function", "function": {"parameters": {}, "name": "look"}}
    trajectory = Trajectory.model_validate({"messages_and_choices": [user("hi"), choice("yes")], "tools": [tool]})
    message, sampled = trajectory.messages_and_choices
    assert isinstance(message, dict) and isinstance(sampled, Choice)
    assert json.dumps(trajectory.tools[0]) == json.dumps(tool)


@pytest.mark.parametrize(
    ("item", "place"),
    [
        (42, ()),
        ({"role": "critic", "content": "no"}, ()),
        ({"role": ["user"], "content": "no"}, ()),
        ({"role": "user"}, ("user", "content")),
        ({"role": "user", "content": 3}, ("user", "content", "text")),
        ({"role": "user", "content": [{"type": "text"}]}, ("user", "content", "parts", 0, "text", "text")),
        ({"role": "tool", "content": "21"}, ("tool", "tool_call_id")),
        ({"finish_reason": "stop", "index": 0}, ("choice", "message")),
        ({**choice("yes"), "finish_reason": "tired"}, ("choice", "finish_reason")),
        ({**choice("yes"), "token_ids": [1, "2"]}, ("choice", "token_ids", 1)),
        ({**choice("yes"), "logprobs": {"content": [{"token": "a"}]}}, ("choice", "logprobs", "content", 0, "logprob")),
    ],
)
def test_an_error_points_at_the_field(item, place):
    places = [where for where, _ in errors(user("hi"), item)]
    assert ("messages_and_choices", 1, *place) in places


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), 1e31, "1", None])
def test_a_reward_is_a_moderate_finite_number(reward):
    assert [where for where, _ in errors(reward=reward)] == [("reward",)]


@pytest.mark.parametrize("part", ['"reward": true', '"reward": "1"', '"metrics": {"a": null}'])
def test_the_numbers_of_code_are_not_those_of_json(part):
    with pytest.raises(ValidationError):
        Trajectory.model_validate_json(f"{{{part}}}")


@pytest.mark.parametrize("version", [-1, 2**31, 10**30, 1.0, "1", True])
def test_a_policy_version_is_a_step(version):
    assert [where for where, _ in errors(initial_policy_version=version)] == [("initial_policy_version",)]
    [(where, _)] = errors(user("hi"), choice("yes", policy_version=version))
    assert where == ("messages_and_choices", 1, "choice", "policy_version")


def test_errors_name_the_place_and_survive_pickling():
    error = pickle.loads(pickle.dumps(TrajectoryError(1, 2, 3, 4, "it is empty.", ("token_ids",))))
    assert str(error) == "group 1, trajectory 2, additional history 2, turn 4, token_ids: it is empty."
    assert error.location == (
        *("trajectory_groups", 1, "trajectories", 2, "additional_histories", 2),
        *("messages_and_choices", 4, "token_ids"),
    )
    assert isinstance(error, ValueError)
    assert pickle.loads(pickle.dumps(ConfigError("epsilon", "negative"))).field == "epsilon"
