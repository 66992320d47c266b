"""The adapter against the real library, with scripted answers."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest
from scripted_chat import ScriptedChat

from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment
from tandem.rl.environments.reasoning_gym import ReasoningGym
from tandem.rl.environments.rollouts import TaskStream

pytest.importorskip("reasoning_gym", reason="the extra `environments` isn't installed")
DATASETS = ["chain_sum", "leg_counting", "countdown", "spell_backward", "knights_knaves"]


def answer(environment: ReasoningGym, task: dict[str, Any], text: str | None) -> Any:
    return asyncio.run(environment.rollout(ScriptedChat(text), task))


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_reward_is_the_librarys_score_of_the_answer_in_its_tags(dataset: str) -> None:
    environment = ReasoningGym(dataset, size=20, eval_size=3)
    task = environment.tasks("train")[7]
    right = answer(environment, task, f"<think>Hm.</think> <answer>no</answer>\n<answer> {task['answer']} </answer>")
    assert right.reward == 1.0
    assert right.metrics == {"answered": True, f"score/{dataset}": 1.0, "unscored": False}
    assert right.metadata == {"dataset": dataset} and right.logs == []
    system, question, choice = right.messages_and_choices
    assert system["role"] == "system" and "<answer>" in system["content"]
    assert question == {"role": "user", "content": task["question"]}
    assert choice.token_ids == [7]
    untagged = answer(environment, task, str(task["answer"]))
    assert untagged.reward < 0.05 and untagged.metrics["answered"] is False  # some give 0.01
    assert answer(environment, task, None).reward < 0.05


def test_partial_credit_is_the_librarys() -> None:
    environment = ReasoningGym("chain_sum", size=20, eval_size=3, system_prompt=None, answer_tag=None)
    task = environment.tasks("train")[0]
    wordy = f"It is {task['answer']}"
    assert answer(environment, task, task["answer"]).reward == 1.0
    assert answer(environment, task, wordy).reward == pytest.approx(len(task["answer"]) / len(wordy))
    assert len(answer(environment, task, wordy).messages_and_choices) == 2  # no system prompt


def test_a_mix_has_the_weights_and_configs_that_it_is_given() -> None:
    datasets = {"chain_sum": {"weight": 3, "config": {"min_terms": 2, "max_terms": 2}}, "leg_counting": None}
    environment = load_environment(
        "tandem.rl.environments.reasoning_gym:ReasoningGym", {"datasets": datasets, "size": 400, "eval_size": 10}
    )
    tasks = list(environment.tasks("train"))
    sums = [task for task in tasks if task["metadata"]["source_dataset"] == "chain_sum"]
    assert {task["metadata"]["num_terms"] for task in sums} == {2}
    assert len(sums) / 400 == pytest.approx(0.75, abs=0.1)


def test_no_question_of_eval_stands_in_train() -> None:
    """Sums of two digits repeat, so different seeds alone don't keep train and eval apart."""
    small = {"chain_sum": {"config": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}}
    environment = ReasoningGym(small, size=300, eval_size=40)
    train, held_out = environment.tasks("train"), environment.tasks("eval")
    questions = {task["question"] for task in held_out}
    assert questions & {environment._train[index]["question"] for index in range(300)}
    assert not questions & {task["question"] for task in train}
    assert (len(train), len(held_out)) == (300, 40)


def test_tasks_are_the_same_for_the_same_seed_in_any_order() -> None:
    first, again, other = (ReasoningGym("chain_sum", size=50, eval_size=5, seed=seed) for seed in (1, 1, 2))
    assert list(first.tasks("train")) == [again.tasks("train")[index] for index in range(50)]
    assert first.tasks("eval") == again.tasks("eval") != other.tasks("eval")
    assert TaskStream(first.tasks("train"), 0).batch(20, 3) == TaskStream(again.tasks("train"), 0).batch(20, 3)


def test_too_few_different_questions_are_said() -> None:
    environment = ReasoningGym({"coin_flip": {"config": {"min_trials": 3, "max_trials": 3}}}, size=30, eval_size=200)
    with pytest.raises(ValueError, match="too few"):
        list(environment.tasks("train"))


def test_an_answer_that_the_verifier_chokes_on_earns_nothing_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = ReasoningGym("chain_sum", size=20, eval_size=3)

    def choke(answer: str | None, entry: dict[str, Any]) -> float:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr(environment._train.datasets["chain_sum"], "score_answer", choke)
    trajectory = answer(environment, environment.tasks("train")[0], "<answer>1</answer>")
    assert trajectory.reward == 0.0 and trajectory.metrics["unscored"] is True
    assert trajectory.logs == ["The verifier of chain_sum raised ZeroDivisionError: 1 / 0"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"datasets": "chain_sums"}, "no dataset 'chain_sums'. Do you mean chain_sum"),
        ({"datasets": {"chain_sum": {"config": {"terms": 1}}}}, "has no terms. It takes: min_terms, max_terms,"),
        ({"datasets": {"chain_sum": {"config": {"seed": 1}}}}, "size and seed are those of the whole mix"),
        ({"datasets": {"chain_sum": {"config": {"min_terms": -1}}}}, "(AssertionError): min_terms"),
        ({"datasets": {"chain_sum": {"wight": 1}}}, "datasets.chain_sum takes weight and config, not wight"),
        ({"datasets": {"chain_sum": {"weight": 0}}}, "weight must be a number above 0, not 0"),
        ({"datasets": {}}, "names no dataset"),
        ({"datasets": "chain_sum", "eval_size": 0}, "sizes are at least 1"),
        ({}, "needs a value for the option 'datasets'"),
    ],
)
def test_options_are_checked_when_the_environment_is_made(options: dict[str, Any], said: str) -> None:
    with pytest.raises(EnvironmentLoadingError) as caught:
        load_environment("tandem.rl.environments.reasoning_gym:ReasoningGym", options)
    assert said in str(caught.value)


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ValueError, match="pip install reasoning-gym"):
        ReasoningGym("chain_sum")
