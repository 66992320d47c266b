"""Policy versions as rollout code sees them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import PROMPT, events_until_end, inference_name, post_job, register, roll_out, train

GREEDY = {"temperature": 0, "logprobs": True, "max_tokens": 12}
TOLERANCE = 1e-4  # of float32 logprobs in different batches; a trained version differs by more


def answer(openai, name):
    raw = openai.chat.completions.with_raw_response.create(
        model=name, messages=[{"role": "user", "content": PROMPT}], **GREEDY
    )
    choice = raw.parse().choices[0]
    return int(raw.headers["x-policy-version"]), [t.logprob for t in choice.logprobs.content], choice


def test_the_bare_name_follows_and_steps_stay_frozen(service, http):
    openai, model = service.openai(), register(http)
    assert answer(openai, inference_name(model, 0))[0] == 0
    version, before, _ = answer(openai, inference_name(model))
    assert version == 0
    for step in (1, 2):
        train(http, model, roll_out(openai, inference_name(model)))
        version, newest, choice = answer(openai, inference_name(model))
        assert version == step
        assert choice.policy_version == step
        assert newest != pytest.approx(before, abs=TOLERANCE)
        assert answer(openai, inference_name(model, step))[:2] == (step, pytest.approx(newest, abs=TOLERANCE))
    assert answer(openai, inference_name(model, 0))[:2] == (0, pytest.approx(before, abs=TOLERANCE))
    plain = f"{model['entity']}/{model['project']}/{model['name']}"
    assert answer(openai, plain)[0] == 2


def test_both_answer_while_a_job_trains(service, http):
    openai, model = service.openai(), register(http)
    trajectories = roll_out(openai, inference_name(model), 8)
    job = post_job(http, model, trajectories * 40)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda i: answer(openai, inference_name(model, 0 if i % 2 else None)), range(16)))
    assert {version for version, _, _ in answers[1::2]} == {0}
    first, *others = [logprobs for _, logprobs, _ in answers[1::2]]
    assert all(logprobs == pytest.approx(first, abs=TOLERANCE) for logprobs in others)
    assert events_until_end(http, job)[-1]["type"] == "training_ended"
    assert answer(openai, inference_name(model))[0] == 1


def learner_logprobs(checkpoint, token_ids):
    """Return the logprobs [T-1] of tokens 1.. by the learner's policy under a checkpoint."""
    from tandem.rl.checkpoints import read_checkpoint
    from tandem.rl.packing import PackedSequence
    from tandem.rl.policy import Policy
    from tandem.rl.tiny.model import resolve_model

    policy = Policy.load(resolve_model("builtin:tiny"), device="cpu")
    policy.load_adapter_state(read_checkpoint(checkpoint).adapter)
    ids = torch.tensor(token_ids)
    zeros = torch.zeros(len(ids))
    segments = zeros.long()
    row = PackedSequence(ids, torch.arange(len(ids)), segments, segments, zeros.bool(), zeros, zeros, zeros)
    with torch.no_grad():
        return policy.logprobs(row)[0][:-1]


def test_engine_and_learner_agree_on_every_token(service, http):
    """Sampled logprobs equal the learner's for the same version, to 1e-4 in float32, before and after training."""
    openai, model = service.openai(), register(http)
    train(http, model, roll_out(openai, inference_name(model)), learning_rate=5e-3)
    for step in (0, 1):
        raw = openai.chat.completions.with_raw_response.create(
            model=inference_name(model, step), messages=[{"role": "user", "content": PROMPT}], max_tokens=40, seed=step
        )
        choice = raw.parse().choices[0]
        checkpoint = service.home / "artifacts" / "checkpoints" / raw.headers["x-policy-digest"]
        num_prompt_tokens = len(choice.prompt_token_ids)
        learner = learner_logprobs(checkpoint, choice.prompt_token_ids + choice.token_ids)
        engine = torch.tensor([token.logprob for token in choice.logprobs.content])
        assert len(engine) == len(choice.token_ids)
        torch.testing.assert_close(learner[num_prompt_tokens - 1 :], engine, atol=1e-4, rtol=0)


def test_deleted_steps_are_gone_and_the_rest_answers(service, http):
    openai, model = service.openai(), register(http)
    for _ in range(2):
        train(http, model, roll_out(openai, inference_name(model)))
    deleted = http.request("DELETE", f"/preview/models/{model['id']}/checkpoints", json={"steps": [1, 7]}).json()
    assert deleted == {"deleted_count": 1, "not_found_steps": [7]}
    response = http.post(
        "/chat/completions", json={"model": inference_name(model, 1), "messages": [{"role": "user", "content": "hi"}]}
    )
    assert response.status_code == 404
    assert "step1" in response.json()["error"]["message"]
    assert answer(openai, inference_name(model))[0] == 2


def test_learning_rate_zero_moves_nothing(service, http):
    openai, model = service.openai(), register(http)
    before = answer(openai, inference_name(model))[1]
    train(http, model, roll_out(openai, inference_name(model)), learning_rate=0)
    version, after, _ = answer(openai, inference_name(model))
    assert version == 1
    assert after == pytest.approx(before, abs=TOLERANCE)


def test_nothing_to_train_still_makes_a_version(service, http):
    openai, model = service.openai(), register(http)
    trajectories = [{**t, "reward": 0.5} for t in roll_out(openai, inference_name(model))]
    events = train(http, model, trajectories)
    assert [e["type"] for e in events] == ["training_started", "warning", "training_ended"]
    assert events[0]["data"]["num_sequences"] == 0
    assert events[1]["data"]["counts"] == {"equal_rewards": len(trajectories)}
    assert answer(openai, inference_name(model))[0] == 1
