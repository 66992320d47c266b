"""Groups whose logprobs were cut out before validation equal those that pydantic validated whole."""

import json
import math
from typing import Any

import pytest
import zstandard
from pydantic import TypeAdapter, ValidationError

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.payloads.cut_logprobs import cut_logprobs
from tandem.cluster.payloads.reading import PayloadError, read_groups
from tandem.rl.tokens.messages import Choice
from tandem.rl.trajectories import TrajectoryGroup

WHOLE = TypeAdapter(TrajectoryGroup)
USER = {"role": "user", "content": 'the "content": [{"token": "x", "logprob": 1}] of a text'}


def entry(token: str, logprob: float = -0.5, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "top_logprobs": [], "bytes": None, **more}


def choice(*entries: dict[str, Any], kind: str = "content", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": 'a "quoted" \\ é 🙂 text'}
    return {"finish_reason": "stop", "index": 0, "message": message, "logprobs": {kind: list(entries)}, **more}


def group(*turns: Any, **more: Any) -> dict[str, Any]:
    return {"trajectories": [{"messages_and_choices": list(turns), "reward": 1, **more}]}


A, B = entry("token_id:3"), entry("é", -2, bytes=[195, 169])
HISTORY = {"messages_and_choices": [USER, choice(B)]}

GROUPS = {
    "a choice": (group(USER, choice(A, B)), 1),
    "two trajectories": ({"trajectories": group(choice(A))["trajectories"] * 2}, 2),
    "histories": (group(USER, choice(A), additional_histories=[HISTORY, HISTORY]), 3),
    "ids and marks": (group(choice(A, token_ids=[3], prompt_token_ids=[1], sampled_with={}, stop_reason=7)), 1),
    "refusal": (group(choice(A, B, kind="refusal")), 1),
    "both kinds": (group({**choice(A), "logprobs": {"content": [A], "refusal": [B, B]}}), 1),
    "top logprobs": (group(choice(entry("a", top_logprobs=[{"token": "b", "logprob": -3, "bytes": [1]}]))), 1),
    "whole numbers": (group(choice(entry("a", -1), entry("b", 0))), 1),
    "no entries": (group(choice(kind="content"), {**choice(), "logprobs": None}), 0),
    "more in an entry": (group(choice(entry("a", confidence=0.5)), choice(A)), 1),
    "more in logprobs": (group({**choice(A), "logprobs": {"content": [A], "engine": "x"}}), 0),
    "a message": (group(USER, {"role": "assistant", "content": "hi"}), 0),
    "fields of a group": ({**group(choice(A)), "metadata": {"logprobs": {"content": [A]}}}, 1),
}


def described(group: TrajectoryGroup) -> Any:
    """Everything that training reads of a group, and all that it keeps."""
    rest = group.model_dump(exclude={"trajectories": {"__all__": {"messages_and_choices", "additional_histories"}}})
    turns = [t for own in group.trajectories for history in own.histories for t in history.messages_and_choices]
    return rest, [
        (t.model_dump(exclude={"logprobs"}), t.model_extra, t.token_columns, t.num_logprobs)
        if isinstance(t, Choice)
        else t
        for t in turns
    ]


@pytest.mark.parametrize(("group", "num_cut"), GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("indent", [None, 2])
def test_a_cut_group_equals_the_whole_one(group, num_cut, indent):
    text = json.dumps(group, indent=indent, ensure_ascii=indent is None).encode()
    rest, cut = cut_logprobs(text)
    assert len(cut.columns) == num_cut
    assert described(WHOLE.validate_json(rest, context=cut)) == described(WHOLE.validate_json(text))


def test_entries_come_back_as_they_were_sent():
    rest, cut = cut_logprobs(json.dumps(group(choice(A, B))).encode())
    [found] = WHOLE.validate_json(rest, context=cut).trajectories[0].messages_and_choices
    assert found.token_logprobs == [A, B]
    assert len(rest) < len(json.dumps(group(choice(A, B)))) - 50


FAULTY = {
    "a token that isn't text": group(USER, choice(A, entry(7))),
    "a missing logprob": group(choice({"token": "a", "top_logprobs": []})),
    "no top logprobs": group(choice(A, {"token": "a", "logprob": -1})),
    "a logprob that isn't finite": group(choice(entry("a", math.nan)), choice(A)),
    "another fault": group(choice(A, B), {"role": "nobody", "content": "x"}),
    "a fault of the choice": group(choice(A, finish_reason="never")),
    "logprobs elsewhere": group({"role": "assistant", "content": "x", "logprobs": {"content": [A]}}),
    "a bad reward": group(choice(A), reward="x"),
    "an infinite number": group(choice(A), metrics={"a": math.inf}),
}


@pytest.mark.parametrize("group", FAULTY.values(), ids=FAULTY)
def test_faults_have_the_places_of_the_whole_group(tmp_path, group):
    text = json.dumps(group)
    artifacts = Artifacts(str(tmp_path))
    artifacts.write_blob("a", zstandard.compress(f'{{"trajectory_groups": [{text}]}}'.encode()))
    with pytest.raises(PayloadError) as found:
        list(read_groups(artifacts, "a"))
    try:
        WHOLE.validate_json(text)
    except ValidationError as error:
        places = [("trajectory_groups", 0, *e["loc"]) for e in error.errors()]
        texts = [e["msg"] for e in error.errors()]
        if found.value.faults[0]["type"] != "message_or_choice":
            assert [fault["loc"] for fault in found.value.faults] == places
        assert [fault["msg"] for fault in found.value.faults] == texts
    else:
        assert [fault["type"] for fault in found.value.faults] == ["not_finite"]


@pytest.mark.parametrize("spoil", [lambda text: text[:-4], lambda text: text.replace(b"7", b"[" * 5000 + b"]" * 5000)])
def test_text_that_is_no_group_is_left_as_it_is(spoil):
    text = spoil(json.dumps(group(choice(A, note=7))).encode())
    assert cut_logprobs(text)[0] == text


def test_the_last_of_two_equal_keys_counts():
    first, last = json.dumps({"content": [A]}), json.dumps({"content": [B, B]})
    text = json.dumps(group(choice())).replace('{"content": []}', f'{first}, "logprobs": {last}').encode()
    rest, cut = cut_logprobs(text)
    assert described(WHOLE.validate_json(rest, context=cut)) == described(WHOLE.validate_json(text))
