"""Streaming, tools, several choices, multi-turn training and job control, as rollout code uses them."""

import openai
import pytest
from helpers import PROMPT, events_until_end, inference_name, post_job, register, roll_out, train, wait_for_health

from tandem.rl.tiny.corpus import ADD_TOOL

MESSAGES = [{"role": "user", "content": PROMPT}]


def test_choices_can_be_turned_back_into_tokens(service, http):
    client, model = service.openai(), register(http)
    completion = client.chat.completions.create(
        model=inference_name(model), messages=MESSAGES, n=3, max_tokens=24, temperature=0.2, seed=0
    )  # whole sentences, which an end token ends
    assert [choice.index for choice in completion.choices] == [0, 1, 2]
    for choice in completion.choices:
        content = choice.logprobs.content  # present although the request has no `logprobs`
        assert [token.token for token in content] == [f"token_id:{i}" for i in choice.token_ids]
        assert choice.finish_reason == "stop"
        assert bytes(content[-1].bytes).decode() == "<|im_end|>"  # so that training covers the decision to stop
        assert all(token.logprob <= 0 and token.top_logprobs == [] for token in content)


def test_streaming_gives_the_same_answer_in_pieces(service, http):
    client, model = service.openai(), register(http)
    # vLLM merges tokens for a slow reader, so a short answer may arrive in one piece.
    options = {"model": inference_name(model), "messages": MESSAGES, "max_tokens": 256, "temperature": 0}
    options["extra_body"] = {"min_tokens": 256}
    whole = client.chat.completions.create(**options).choices[0]
    chunks = list(client.chat.completions.create(**options, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole.message.content
    assert len(pieces) > 1
    assert {chunk.choices[0].policy_version for chunk in chunks if chunk.choices} == {0}


def test_a_tool_is_called_answered_and_the_whole_conversation_trained(service, http):
    client, model = service.openai(), register(http)
    trajectories = []
    for index in range(4):
        messages = [{"role": "user", "content": "What is 3 plus 4?"}]
        history = list(messages)
        for _ in range(2):
            options = {"model": inference_name(model), "tools": [ADD_TOOL], "max_tokens": 64}
            options |= {"temperature": 0.2, "seed": index}
            choice = client.chat.completions.create(messages=messages, **options).choices[0]
            history.append(choice.model_dump())
            if not choice.message.tool_calls:
                break
            call = choice.message.tool_calls[0]
            assert call.function.name == "add"
            messages.append(choice.message.model_dump(exclude_none=True))
            tool = {"role": "tool", "tool_call_id": call.id, "content": "7"}
            messages.append(tool)
            history.append(tool)
        trajectories.append({"messages_and_choices": history, "tools": [ADD_TOOL], "reward": float(index % 2)})
    turns = [sum("finish_reason" in turn for turn in t["messages_and_choices"]) for t in trajectories]
    assert max(turns) == 2
    events = train(http, model, trajectories)
    sampled = sum(
        len(turn["token_ids"]) for t in trajectories for turn in t["messages_and_choices"] if "finish_reason" in turn
    )
    [step] = [event["data"] for event in events if event["type"] == "gradient_step"]
    assert step["data/step_trainer_tokens"] == sampled
    [warning] = [event["data"] for event in events if event["type"] == "warning"]
    assert (warning["kind"], warning["counts"]) == ("other_distribution", {"temperature": sampled})


def test_an_unknown_model_is_a_404_the_client_understands(service):
    with pytest.raises(openai.NotFoundError, match="default/tests/absent"):
        service.openai().chat.completions.create(model="default/tests/absent", messages=MESSAGES)


def test_a_bad_request_is_vllms_own_400(service, http):
    with pytest.raises(openai.BadRequestError, match=r"max_tokens|max_completion_tokens|context"):
        service.openai().chat.completions.create(model="tandem/tiny", messages=MESSAGES, max_tokens=10_000_000)


def test_a_wrong_key_is_rejected(service):
    client = openai.OpenAI(base_url=service.base_url, api_key="tdm_wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(model="tandem/tiny", messages=MESSAGES)


def test_an_inexact_trajectory_is_rejected_at_its_place_and_not_stored(service, http):
    model = register(http)
    trajectories = roll_out(service.openai(), inference_name(model), 2)
    choice = trajectories[1]["messages_and_choices"][1]
    choice["token_ids"] = choice["token_ids"][:-1]
    body = {"model_id": model["id"], "trajectory_groups": [{"trajectories": trajectories}]}
    response = http.post("/preview/training-jobs", json=body)
    assert response.status_code == 422
    place = ["body", "trajectory_groups", 0, "trajectories", 1, "messages_and_choices", 1]
    assert response.json()["detail"][0]["loc"][: len(place)] == place
    assert http.get("/preview/training-jobs", params={"model_id": model["id"]}).json()["data"] == []


def test_a_running_job_can_be_cancelled(service, http):
    model = register(http)
    trajectories = roll_out(service.openai(), inference_name(model))
    long = post_job(http, model, trajectories * 150, packed_sequence_length=64)  # hundreds of gradient steps
    jobs = [long, post_job(http, model, trajectories)]
    for job in reversed(jobs):  # the second waits, the first runs
        assert http.post(f"/preview/training-jobs/{job}/cancel").status_code == 200
    for job in jobs:
        events = events_until_end(http, job)
        assert events[-1]["type"] == "training_failed"
        assert "cancel" in events[-1]["data"]["error_message"]
        assert http.get(f"/preview/training-jobs/{job}").json()["state"] == "cancelled"
    train(http, model, trajectories)  # the model still trains
    assert http.get(f"/preview/models/{model['id']}").json()["step"] == 1


def test_deleting_a_model_ends_its_jobs(service, http):
    model = register(http)
    trajectories = roll_out(service.openai(), inference_name(model))
    job = post_job(http, model, trajectories * 150, packed_sequence_length=64)
    assert http.delete(f"/preview/models/{model['id']}").status_code == 200
    events = events_until_end(http, job)
    assert events[-1]["type"] == "training_failed"
    assert "deleted" in events[-1]["data"]["error_message"]


def test_health_is_ok(service, http):
    model = register(http)
    # A deleted job may have stopped the learners.
    train(http, model, roll_out(service.openai(), inference_name(model)))
    health = wait_for_health(service.url, lambda health: health["status"] == "ok", 300)
    assert health == {"status": "ok", "reasons": []}
