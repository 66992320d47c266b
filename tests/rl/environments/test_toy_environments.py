import asyncio
import itertools
from typing import Any

import pytest
from scripted_chat import ScriptedChat, call, turn

from tandem.rl.environments.procedural import DrawnTasks
from tandem.rl.environments.toy import Calculator, Copy, Largest, YesNoMaybe
from tandem.rl.tiny.corpus import ADD_TOOL

ALL = [Largest, YesNoMaybe, Copy, Calculator]


@pytest.mark.parametrize("environment", ALL)
def test_tasks_are_the_same_each_time_and_no_task_is_of_both_splits(environment: type) -> None:
    made, again, other = environment(), environment(), environment(seed=1)
    train, held_out = made.tasks("train"), made.tasks("eval")
    assert (len(train), len(held_out)) == (4096, 128)
    assert list(train[:50]) == list(again.tasks("train")[:50]) != list(other.tasks("train")[:50])
    assert set(train).isdisjoint(held_out)
    assert set(train).isdisjoint(other.tasks("eval"))


def test_largest_keeps_all_orders_of_numbers_in_one_split() -> None:
    environment = Largest(size=2000, eval_size=500)
    train = {tuple(sorted(task)) for task in environment.tasks("train")}
    assert train.isdisjoint(tuple(sorted(task)) for task in environment.tasks("eval"))
    assert all(len(set(task)) == 3 and 1 <= min(task) and max(task) <= 20 for task in environment.tasks("eval"))


def test_drawn_tasks_are_a_sequence_and_say_when_there_are_too_few() -> None:
    tasks = DrawnTasks(lambda rng: rng.randrange(1000), "train", 5)
    assert list(tasks) == [tasks[index] for index in range(5)] == tasks[:]
    assert tasks[-1] == tasks[4] and tasks[1:3] == [tasks[1], tasks[2]]
    with pytest.raises(IndexError):
        tasks[5]
    with pytest.raises(ValueError, match="too few distinct tasks"):
        [DrawnTasks(lambda rng: 1, split, 1)[0] for split in ("train", "eval")]
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        DrawnTasks(lambda rng: 1, "train", 0)


def test_an_eighth_of_the_tasks_is_held_out() -> None:
    keys = list(itertools.combinations(range(1, 21), 3))
    drawn = DrawnTasks(lambda rng: rng.choice(keys), "eval", 4000)
    assert len(set(drawn)) == pytest.approx(len(keys) / 8, rel=0.25)


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("The largest is 17.", 1), ("The largest is 3.", 0), ("17", 0), ("The largest is 17. ", 0), (None, 0)],
)
def test_largest_rewards_the_right_number_in_a_sentence(answer: str | None, reward: float) -> None:
    environment = Largest()
    assert environment.messages((3, 17, 8)) == [{"role": "user", "content": "Which is the largest: 3, 17 or 8?"}]
    assert environment.reward((3, 17, 8), answer) == reward


@pytest.mark.parametrize(
    ("answer", "reward"),
    [("maybe", 1), ("no", 0.75), ("Yes.", 0.5), ("'maybe'", 1), ("yes no", 0), ("", 0), (None, 0)],
)
def test_yes_no_maybe_rewards_its_three_words(answer: str | None, reward: float) -> None:
    environment = YesNoMaybe()
    task = environment.tasks("train")[0]
    assert environment.messages(task) == [{"role": "user", "content": task}]
    assert {word in task for word in ("yes", "no", "maybe")} == {True}
    assert environment.reward(task, answer) == reward


@pytest.mark.parametrize(
    ("answer", "reward", "exact"),
    [
        ("You said blue door cat.", 1, 1),
        ("blue door cat", 1, 1),
        ("You said blue cat.", 2 * 2 / (3 + 2), 0),  # two common words; three requested, two said
        ("You said door blue.", 2 * 1 / (3 + 2), 0),  # wrong order: only one common block counts
        ("You said blue door cat cat cat.", 2 * 3 / (3 + 5), 0),
        ("You said sun.", 0, 0),
        ("", 0, 0),
        (None, 0, 0),
    ],
)
def test_copy_rewards_the_words_in_their_order(answer: str | None, reward: float, exact: float) -> None:
    environment = Copy(num_words=3)
    task = ("blue", "door", "cat")
    assert environment.messages(task) == [{"role": "user", "content": "Repeat: blue door cat"}]
    assert environment.reward(task, answer) == pytest.approx(reward)
    assert environment.metrics(task, answer) == {"exact": exact}


def calculate(*turns: dict[str, Any] | str, task: tuple[int, ...] = (3, 4), **options: Any) -> Any:
    chat = ScriptedChat(*turns)
    trajectory = asyncio.run(Calculator(**options).rollout(chat, task))
    assert len(chat.asked) == len(turns)
    assert list(chat.tools) == trajectory.tools == [ADD_TOOL]
    return trajectory


ADD = call("add", {"a": 3, "b": 4})


def numbers(trajectory: Any) -> tuple[float, int, int]:
    return trajectory.reward, trajectory.metrics["tool_calls"], trajectory.metrics["mistakes"]


def test_a_right_answer_after_a_right_call() -> None:
    trajectory = calculate(turn(None, ADD), "3 plus 4 is 7.")
    question, called, result, answer = trajectory.messages_and_choices
    assert question == {"role": "user", "content": "What is 3 plus 4?"}
    assert result == {"role": "tool", "tool_call_id": "call_0", "content": "The sum is 7."}
    assert called.message["tool_calls"] == [ADD] and answer.message["content"] == "3 plus 4 is 7."
    assert trajectory.reward == 1.0
    assert trajectory.metrics == {"calculated": True, "correct": True, "tool_calls": 1, "mistakes": 0}


def test_the_calculation_and_the_answer_are_rewarded_apart() -> None:
    assert numbers(calculate(turn(None, ADD), "3 plus 4 is 8.")) == (0.5, 1, 0)
    assert numbers(calculate(turn(None, call("add", {"a": 3, "b": 3})), "3 plus 4 is 6.")) == (0, 1, 0)
    # A right answer that the tool didn't compute earns nothing.
    assert numbers(calculate(turn(None, call("add", {"a": 3, "b": 3})), "3 plus 4 is 7.")) == (0, 1, 0)


def test_two_calls_in_one_turn() -> None:
    other = call("add", {"a": 1, "b": 1}, "call_1")
    trajectory = calculate(turn(None, ADD, other), "It is 7.")
    assert [message["content"] for message in trajectory.messages_and_choices[2:4]] == [
        "The sum is 7.",
        "The sum is 2.",
    ]
    assert numbers(trajectory) == (1, 2, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (call("add", '{"a": 3, "b"'), "aren't valid JSON"),
        (call("subtract", {"a": 3, "b": 4}), "The tools are: add."),
        (call("add", {"a": "3", "b": 4}), "add takes two integers a and b, not '3' and 4."),
        (call("add", {"a": True, "b": 4}), "add takes two integers"),
    ],
)
def test_a_failed_call_is_explained_costs_and_may_be_mended(wrong: dict[str, Any], said: str) -> None:
    trajectory = calculate(turn(None, wrong), turn(None, ADD), "It is 7.")
    assert said in trajectory.messages_and_choices[2]["content"]
    assert numbers(trajectory) == (pytest.approx(0.9), 2, 1)


def test_an_answer_without_a_call_is_asked_for_one() -> None:
    trajectory = calculate("7", turn(None, ADD), "7")
    assert trajectory.messages_and_choices[2] == {"role": "user", "content": "Call the tool add before you answer."}
    assert numbers(trajectory) == (pytest.approx(0.9), 1, 1)


def test_turns_are_limited() -> None:
    assert numbers(calculate("7", "7", "7", "7")) == (0, 0, 4)
    assert numbers(calculate(turn(None, ADD), turn(None, ADD), max_turns=2)) == (0.5, 2, 0)


def test_more_terms_take_more_calls() -> None:
    turns = [turn(None, ADD), turn(None, call("add", {"a": 7, "b": 5})), "It is 12."]
    trajectory = calculate(*turns, task=(3, 4, 5))
    assert trajectory.messages_and_choices[0]["content"] == "What is 3 plus 4 plus 5?"
    assert numbers(trajectory) == (1, 2, 0)
    assert numbers(calculate(turn(None, ADD), "It is 12.", task=(3, 4, 5))) == (0, 1, 0)


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="num_terms=3, max_number=9, max_turns=2"):
        Calculator(num_terms=3, max_turns=2)
    with pytest.raises(ValueError, match="num_words must lie between 1 and 22, not 0"):
        Copy(num_words=0)
