"""Clients wait for new versions, and training reports the age of the policy that sampled."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import PROMPT, inference_name, post_job, register, roll_out, train

from tandem.rl.policy_versions import tag_policy_versions


def greedy_logprobs(openai, name):
    completion = openai.chat.completions.create(
        model=name, messages=[{"role": "user", "content": PROMPT}], temperature=0, logprobs=True, max_tokens=12
    )
    return [token.logprob for token in completion.choices[0].logprobs.content]


def test_ten_jobs_without_learning_move_no_logprob(service, http):
    openai, model = service.openai(), register(http)
    before = greedy_logprobs(openai, inference_name(model))
    trajectories = [tag_policy_versions(t) for t in roll_out(openai, inference_name(model))]
    assert {(t["initial_policy_version"], t["final_policy_version"]) for t in trajectories} == {(0, 0)}
    for step in range(10):
        started = train(http, model, trajectories, learning_rate=0)[0]
        assert started["data"]["policy_lag/max"] == step
    assert greedy_logprobs(openai, inference_name(model)) == pytest.approx(before, abs=1e-4)


def test_a_request_can_wait_for_the_next_version(service, http):
    openai, model = service.openai(), register(http)
    url = f"/preview/models/{model['id']}/versions"
    assert http.get(url, params={"wait": 0.2}).json()["data"] == []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(http.get, url, params={"after": 0, "wait": 60})
        post_job(http, model, roll_out(openai, inference_name(model)))
        # An empty answer means "ask again", which a very slow machine may need.
        data = waiting.result().json()["data"] or http.get(url, params={"wait": 60}).json()["data"]
    [version] = data
    assert version["step"] == 1
    answer = openai.chat.completions.with_raw_response.create(
        model=inference_name(model), messages=[{"role": "user", "content": PROMPT}], max_tokens=4
    )
    assert answer.headers["x-policy-digest"] == version["digest"]
