"""Graders, with the unmodified SDK of OpenAI."""

import json

import openai
import pytest
from fine_tuning_data import EXACT
from serve_fakes import choice

JUDGE = {
    "type": "score_model",
    "name": "judge",
    "model": "tandem/tiny",
    "input": [{"role": "user", "content": "Grade {{sample.output_text}}."}],
    "range": [0, 10],
    "sampling_params": {"temperature": 0.5, "seed": 3, "max_completions_tokens": 20},
}


def answers(engine, content):
    message = {"role": "assistant", "content": content, "refusal": None, "tool_calls": None}
    engine.answers({"choices": [choice(message=message)], "usage": {"total_tokens": 9}})


def test_a_grader_is_checked_and_run(client):
    graders = client.fine_tuning.alpha.graders
    assert graders.validate(grader=EXACT).grader.operation == "eq"
    run = graders.run(grader=EXACT, model_sample="seven", item={"answer": "seven"})
    assert (run.reward, run.sub_rewards) == (1, {"exact": 1})
    assert (run.metadata.name, run.metadata.type, run.metadata.errors.other_error) == ("exact", "string_check", False)
    assert run.api_model_grader_token_usage_per_model == {}


def test_a_grader_that_fails_says_why(client):
    run = client.fine_tuning.alpha.graders.run(grader=EXACT, model_sample="seven", item={})
    assert run.reward == 0 and run.metadata.errors.invalid_variable_error
    assert "item.answer" in run.metadata.errors.api_model_grader_server_error_details


def test_a_judge_is_a_model_of_the_service(client, engine):
    answers(engine, '{"result": 7.5}')
    run = client.fine_tuning.alpha.graders.run(grader=JUDGE, model_sample="seven")
    assert run.reward == 7.5
    assert run.api_model_grader_token_usage_per_model == {"tandem/tiny": 9}
    assert (run.metadata.sampled_model_name, run.metadata.token_usage) == ("tandem/tiny", 9)
    [(base_model, _, path, _, body, _)] = engine.asked
    assert (base_model, path) == ("tandem/tiny", "/v1/chat/completions")
    assert body["messages"] == [{"role": "user", "content": "Grade seven."}]
    assert (body["temperature"], body["seed"], body["max_tokens"]) == (0.5, 3, 20)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["result"]


@pytest.mark.parametrize("content", ["", '{"result": 11}', "seven"])
def test_a_judge_without_a_grade(client, engine, content):
    answers(engine, content)
    run = client.fine_tuning.alpha.graders.run(grader=JUDGE, model_sample="seven")
    assert run.reward == 0 and run.metadata.errors.api_model_grader_parse_error


def test_a_judge_that_the_engine_refuses(client, engine):
    engine.answers({"error": {"message": "too long", "type": "BadRequestError", "code": 400}}, status=400)
    run = client.fine_tuning.alpha.graders.run(grader=JUDGE, model_sample="seven")
    assert run.metadata.errors.api_model_grader_server_error
    assert "too long" in run.metadata.errors.api_model_grader_server_error_details


def test_judges_of_other_entities_are_not_found(client):
    for model in ("others/project/agent", "gpt-4o"):
        for call in (
            client.fine_tuning.alpha.graders.validate,
            lambda grader: client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x"),
        ):
            with pytest.raises(openai.BadRequestError) as error:
                call(grader={**JUDGE, "model": model})
            assert (error.value.param, error.value.code) == ("grader.model", "model_not_found")


def test_programs_are_off_unless_the_operator_allows_them(client):
    grader = {"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}
    with pytest.raises(openai.BadRequestError, match="run_code") as error:
        client.fine_tuning.alpha.graders.run(grader=grader, model_sample="x")
    assert (error.value.param, error.value.code) == ("grader.type", "python_graders_off")


def test_a_label_grader(client, engine):
    label = {**JUDGE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
    del label["range"]
    answers(engine, json.dumps({"result": "good"}))
    assert client.fine_tuning.alpha.graders.run(grader=label, model_sample="seven").reward == 1
