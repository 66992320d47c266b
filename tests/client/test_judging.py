"""A judge's answers in all their forms, against an endpoint with scripted answers."""

import asyncio
import json
import pickle

import openai
import pytest
from model_endpoint import Endpoint, error, running
from starlette.responses import JSONResponse

from tandem.client import JudgeError, Rollout, capture, judge_group
from tandem.client.judging import parsed_scores
from tandem.client.transcripts import conversations

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def trajectory(*answers):
    choices = [
        {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}, "token_ids": [1]}
        for answer in answers
    ]
    return {"messages_and_choices": [*QUESTION, *choices], "reward": 0.0}


def answer(content, finish_reason="stop"):
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "finish_reason": finish_reason, "message": message}
    return JSONResponse({"id": "c", "created": 1, "object": "chat.completion", "model": "j", "choices": [choice]})


def scores(**values):
    return json.dumps({id: {"explanation": f"about {id}", "score": value} for id, value in values.items()})


@pytest.fixture(scope="module")
def server():
    with running(Endpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def ask(server):
    """Judge trajectories; the endpoint gives these answers."""

    def ask(trajectories, *answers, **options):
        server.answers, server.requests = list(answers), []
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
            return asyncio.run(judge_group(client, "judge", trajectories, **options)), server.requests

    return ask


def test_each_trajectory_gets_its_score_and_the_common_beginning_is_shown_once(ask):
    found, [request] = ask([trajectory("4"), trajectory("5"), trajectory("4")], answer(scores(**{"1": 1, "2": 0.25})))
    assert [(one.score, one.explanation) for one in found] == [(1, "about 1"), (0.25, "about 2"), (1, "about 1")]
    material = request["messages"][1]["content"]
    assert material.count("2 + 2?") == 1 and material.count("<trajectory id=") == 2 and "token_ids" not in material
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["1", "2"]


def test_the_rubric_the_tools_and_sampling_reach_the_judge(ask):
    options = {"rubric": "- Prefer brevity.", "tools": [{"name": "add"}], "max_tokens": 50}
    _, [request] = ask([trajectory("4"), trajectory("5")], answer(scores(**{"1": 1, "2": 0})), **options)
    assert "- Prefer brevity." in request["messages"][0]["content"] and request["max_tokens"] == 50
    assert "<tools>" in request["messages"][1]["content"]


def test_an_async_client_judges_too_and_nothing_to_judge_asks_nothing(server):
    server.answers, server.requests = [answer(scores(**{"1": 1, "2": 0}))], []

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="k") as client:
            assert await judge_group(client, "judge", []) == []
            return await judge_group(client, "judge", [trajectory("4"), trajectory("5")])

    assert [one.score for one in asyncio.run(run())] == [1, 0]


def test_the_judge_is_never_captured(ask):
    with capture() as rollout:
        ask([trajectory("4"), trajectory("5")], answer(scores(**{"1": 1, "2": 0})))
    assert rollout.exchanges == {}


def test_an_answer_that_cannot_be_used_is_returned_with_its_fault(ask):
    good = answer(scores(**{"1": 1, "2": 0}))
    found, requests = ask(
        [trajectory("4"), trajectory("5")], answer("Both are fine."), answer(scores(**{"1": 1})), good
    )
    assert [one.score for one in found] == [1, 0]
    assert [len(request["messages"]) for request in requests] == [2, 4, 4]
    assert "lacks the ids 2" in requests[2]["messages"][-1]["content"]


def test_a_judge_that_never_answers_well_is_an_error_with_group_and_model(ask):
    bad = [answer(scores(**{"1": 7, "2": 0}), "length") for _ in range(2)]
    with pytest.raises(JudgeError, match=r"judge of group 3 .* 2 attempts.*score of 1 is '7'.*max_tokens") as raised:
        ask([trajectory("4"), trajectory("5")], *bad, group="group 3", attempts=2)
    assert (raised.value.model, raised.value.group) == ("judge", "group 3")
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


def test_an_endpoint_without_structured_outputs_is_asked_without(ask):
    refusal = JSONResponse({"error": {"message": "response_format isn't supported"}}, 400)
    found, requests = ask([trajectory("4"), trajectory("5")], refusal, answer(scores(**{"1": 1, "2": 0})))
    assert [one.score for one in found] == [1, 0]
    assert ["response_format" in request for request in requests] == [True, False]


@pytest.mark.parametrize(("response", "said"), [(error(400), "was refused"), (error(500), "didn't answer")])
def test_an_endpoint_that_fails_is_an_error_of_the_judge(ask, response, said):
    with pytest.raises(JudgeError, match=f"judge {said}"):
        ask([trajectory("4"), trajectory("5")], response)


WANTED = {"1": 0.5, "2": 1.0}
LISTED = [{"trajectory_id": "2", "score": 1}, {"trajectory_id": 1, "score": "0.5", "explanation": "so so"}]


@pytest.mark.parametrize(
    "text",
    [
        '{"1": {"score": 0.5}, "2": {"score": 1}}',
        '{"1": 0.5, "2": 1}',
        json.dumps({"scores": LISTED}),
        json.dumps(LISTED),
        '```json\n{"1": 0.5, "2": 1.0}\n```',
        '<think>{"1": 0, "2": 0} at first</think> So: {"1": 0.5, "2": 1} [as asked]',
        'Draft {"1": 0, "2": 0}, final {"1": 0.5, "2": 1} (a set {x})',
    ],
)
def test_scores_are_read_from_every_usual_form(text):
    assert {id: one.score for id, one in parsed_scores(text, ["1", "2"]).items()} == WANTED


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "no JSON"),
        ('{"1": 0.5', "no JSON"),
        ('{"1": 0.5}', "lacks the ids 2"),
        ('{"1": 0.5, "2": 1, "3": 1}', "unknown the ids 3"),
        ('[{"id": 1, "score": 1}, {"id": 1, "score": 1}]', "lacks the ids 2 and repeats the ids 1"),
        ('{"1": true, "2": 1}', "score of 1 is 'True'"),
        ('{"1": "high", "2": 1}', "score of 1 is 'high'"),
        ('{"1": NaN, "2": 1}', "score of 1"),
        ('{"1": -0.1, "2": 1}', "score of 1"),
        ('{"1": null, "2": 1}', "score of 1"),
    ],
)
def test_anything_else_is_a_fault_that_is_named(text, fault):
    with pytest.raises(ValueError, match=fault):
        parsed_scores(text, ["1", "2"])


def test_conversations_of_a_captured_rollout_are_merged_over_its_turns(server):
    tool = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k") as client, capture() as rollout:
        messages = [{"role": "user", "content": "one"}]
        first = client.chat.completions.create(model="m", messages=messages, tools=tool).choices[0].message
        result = {"role": "tool", "tool_call_id": "call_1", "content": "two"}
        messages += [first.model_dump(exclude_none=True), result]
        client.chat.completions.create(model="m", messages=messages)
        client.chat.completions.create(model="m", messages=[{"role": "user", "content": "aside"}])
        client.completions.create(model="m", prompt="text")
        client.responses.create(model="m", input="question", instructions="Be brief.")
    main, aside, text, response = conversations(rollout)
    assert [message["role"] for message in main] == ["user", "assistant", "tool", "assistant"]
    assert main[1]["tool_calls"] == [{"name": "add", "arguments": '{"a": 1}'}]
    assert [message["content"] for message in aside] == ["aside", "aside"]
    assert [message["content"] for message in text] == ["text", "text"]
    assert [message["content"] for message in response] == ["Be brief.", "question", "question"]


def test_histories_images_and_unknown_kinds():
    image = [{"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "text", "text": "What is it?"}]
    more = {"messages_and_choices": [{"role": "user", "content": image}]}
    found = conversations({**trajectory("4"), "additional_histories": [more]})
    assert found[1] == [{"role": "user", "content": ["[image_url]", "What is it?"]}] and len(found[0]) == 3
    with pytest.raises(TypeError, match="not int"):
        conversations(3)
    assert Rollout().reward == 0
