"""Graders from their wire form to a reward."""

import asyncio
import json

import pytest
from pydantic import TypeAdapter, ValidationError

from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.formulas import evaluate
from tandem.rl.graders.grading import Grading
from tandem.rl.graders.programs import ProgramLimits
from tandem.rl.graders.sample import Sample
from tandem.rl.graders.spec import Grader
from tandem.rl.graders.templates import render

GRADER = TypeAdapter(Grader)
CHECK = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}
SIMILAR = {
    "type": "text_similarity",
    "name": "close",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "tandem/tiny",
    "input": [{"role": "developer", "content": "Grade {{sample.output_text}} against {{item.answer}}."}],
}
LIMITS = ProgramLimits(seconds=20)


def grade(grader, item, text, ask=None, programs=None):
    return asyncio.run(Grading(GRADER.validate_python(grader), ask, programs)(item, Sample(text)))


def refusal(**changes):
    with pytest.raises(ValidationError) as error:
        GRADER.validate_python({**CHECK, **changes})
    return error.value.errors()[0]["loc"], error.value.errors()[0]["msg"]


def test_a_template_inserts_strings_as_they_are_and_other_values_as_json():
    item = {"a": {"b": ["x", 2]}, "x-y": None}
    sample = Sample('{"n": [1]}', [{"function": {"name": "f"}}]).namespace()
    assert render('{{item.a.b[0]}}|{{ item.a.b }}|{{item["x-y"]}}', item, sample) == 'x|["x", 2]|null'
    assert render("{{sample.output_json.n[0]}} {{sample.output_tools[0].function.name}}", item, sample) == "1 f"
    assert render("{{item.text}}", {"text": "{{item.text}}"}, sample) == "{{item.text}}", "values are no templates"


@pytest.mark.parametrize("path", ["item.none", "item.a[1]", "sample.output_json.x"])
def test_a_path_that_leads_nowhere_is_an_error(path):
    with pytest.raises(GraderError) as error:
        render("{{" + path + "}}", {"a": ["x"]}, Sample("no json").namespace())
    assert error.value.kind == "invalid_variable_error" and path in str(error.value)


def test_reward_and_parts_of_a_multi_grader():
    multi = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": CHECK, "close": SIMILAR},
        "calculate_output": "0.5 * exact + close ^ 2 / 4",
    }
    found = grade(multi, {"answer": "sitting"}, "kitten")
    assert found.sub_rewards == {"exact": 0, "close": pytest.approx(8 / 13)}
    assert found.reward == pytest.approx((8 / 13) ** 2 / 4)
    as_list = {**multi, "graders": [CHECK, SIMILAR]}
    assert grade(as_list, {"answer": "kitten"}, "kitten").reward == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("-2 ^ 2", -4),
        ("min(a, b, 1) + max(a, b)", 2.5),
        ("abs(-a) + sqrt(4) + floor(b) + ceil(a) + exp(0) + log(1)", 0.5 + 2 + 2 + 1 + 1),
        ("(a + b) * 2 - 1 / 4", 4.75),
    ],
)
def test_formulas(formula, value):
    assert evaluate(formula, {"a": 0.5, "b": 2.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "formula",
    ["", "a +", "c", "a.real", "__import__('os')", "[a]", "a if b else 1", "1 / 0", "exp(9999)", "min(a)*'x'"],
)
def test_a_formula_is_arithmetic_with_a_finite_value(formula):
    with pytest.raises(GraderError) as error:
        evaluate(formula, {"a": 0.5, "b": 2.0})
    assert error.value.kind == "formula_parse_error"


def test_what_cannot_be_graded_is_rejected_by_field():
    assert refusal(operation="near")[0][-1] == "operation"
    assert refusal(input="{{row.x}}")[0][-1] == "input"
    assert refusal(input="{{sample.logprobs}}")[0][-1] == "input"
    assert refusal(extra=1)[0][-1] == "extra"
    for metric in ("cosine", "meteor", "rouge_6"):
        with pytest.raises(ValidationError, match=r"(use|must be) one of") as error:
            GRADER.validate_python({**SIMILAR, "evaluation_metric": metric})
        assert error.value.errors()[0]["loc"][-1] == "evaluation_metric"
    with pytest.raises(ValidationError, match="there is no grader 'b'"):
        GRADER.validate_python({"type": "multi", "name": "m", "graders": {"a": CHECK}, "calculate_output": "a + b"})


def judge(content, **choice):
    asked = []

    async def ask(body):
        asked.append(body)
        message = {"role": "assistant", "content": content}
        return {"choices": [{"message": message, "finish_reason": "stop", **choice}], "usage": {"total_tokens": 7}}

    return ask, asked


def test_a_judge_scores():
    ask, asked = judge('{"result": 0.25}')
    found = grade(SCORE, {"answer": "seven"}, "7", ask)
    assert (found.reward, found.judge_tokens) == (0.25, {"tandem/tiny": 7})
    [body] = asked
    assert body["messages"] == [{"role": "system", "content": "Grade 7 against seven."}]
    assert body["temperature"] == 0 and body["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ("no json", "model_grader_parse_error"),
        ('{"result": "1"}', "model_grader_parse_error"),
        ('{"result": true}', "model_grader_parse_error"),
        ('{"result": 2}', "model_grader_parse_error"),
        (None, "model_grader_parse_error"),
    ],
)
def test_an_answer_without_a_grade_is_an_error(content, kind):
    with pytest.raises(GraderError) as error:
        grade(SCORE, {"answer": "seven"}, "7", judge(content)[0])
    assert error.value.kind == kind


def test_a_range_bounds_the_score():
    assert grade({**SCORE, "range": [0, 5]}, {"answer": "a"}, "b", judge('{"result": 2}')[0]).reward == 2
    with pytest.raises(ValidationError, match="range"):
        GRADER.validate_python({**SCORE, "range": [1, 1]})


def test_a_judge_labels():
    label = {**SCORE, "type": "label_model", "labels": ["good", "bad"], "passing_labels": ["good"]}
    assert grade(label, {"answer": "a"}, "b", judge('{"result": "good"}')[0]).reward == 1
    assert grade(label, {"answer": "a"}, "b", judge('{"result": "bad"}')[0]).reward == 0


def program(source):
    return {"type": "python", "name": "program", "source": source}


def test_a_program_grades_in_a_process_of_its_own():
    source = "def grade(sample, item):\n    print('noise')\n    return len(sample['output_text']) / item['length']"
    assert grade(program(source), {"length": 4}, "ab", programs=LIMITS).reward == 0.5


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def grade(sample, item):\n    raise ValueError('no rows')", "no rows"),
        ("x = 1", "grade"),
        ("def grade(sample, item):\n    return float('nan')", "finite"),
        ("def grade(sample, item):\n    return 'a' * (3 << 30)", "MemoryError"),
        ("import os\nos._exit(0)", "no number"),
        ("def grade(sample, item):\n    import os\n    return float(len(os.environ) > 3)", None),
    ],
)
def test_a_program_that_fails_says_why(source, shown):
    if shown is None:
        assert grade(program(source), {}, "", programs=LIMITS).reward == 0, "it sees nothing of the service's settings"
        return
    with pytest.raises(GraderError, match=shown) as error:
        grade(program(source), {}, "", programs=LIMITS)
    assert error.value.kind == "python_grader_runtime_error"


def test_a_program_that_hangs_is_ended():
    with pytest.raises(GraderError, match="longer than"):
        grade(program("import time\ntime.sleep(600)"), {}, "", programs=ProgramLimits(seconds=0.5))


def test_programs_are_off_unless_they_are_allowed():
    with pytest.raises(GraderError) as error:
        grade(program("def grade(sample, item): return 1"), {}, "")
    assert error.value.kind == "python_grader_server_error"


def test_a_sample_of_a_choice():
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": 1})}}
    choice = {"finish_reason": "stop", "message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    sample = Sample.of_choice(choice)
    assert (sample.output_text, sample.output_json, sample.output_tools) == ("", None, [call])
