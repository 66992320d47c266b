"""Environments named in task files, and the errors of those that can't be loaded."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from paths import EXAMPLES
from scripted_chat import ScriptedChat

from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment
from tandem.rl.environments.toy import Calculator

TOY = "tandem.rl.environments.toy"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with two files of a user, one of which imports the other."""
    path = list(sys.path)
    write(tmp_path / "agents" / "words_of_the_shop.py", "GREETING = 'good day'")
    write(
        tmp_path / "agents" / "shop.py",
        """
        from dataclasses import dataclass
        from words_of_the_shop import GREETING
        from tandem.rl.environments.base import Environment, SingleTurnEnvironment

        @dataclass
        class Customer:
            name: str

        class Shop(SingleTurnEnvironment[Customer]):
            def __init__(self, customer: str, *, patience: int = 3):
                super().__init__()
                if patience < 1:
                    raise ValueError("patience must be at least 1")
                self.customer = Customer(customer)

            def tasks(self, split):
                return [self.customer]

            def messages(self, task):
                return [{"role": "user", "content": f"Greet {task.name}"}]

            def reward(self, task, answer):
                return float(answer == GREETING)

        class HalfDone(Environment):
            def tasks(self, split):
                return []

        def function():
            pass
        """,
    )
    yield tmp_path
    sys.path[:] = path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(dedent(text))


def refusal(spec: str, options: dict | None = None, base_dir: Path | str = ".") -> str:
    with pytest.raises(EnvironmentLoadingError) as caught:
        load_environment(spec, options, base_dir)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    return str(caught.value)


def test_a_class_of_an_installed_module_with_its_options() -> None:
    environment = load_environment(f"{TOY}:Calculator", {"num_terms": 3})
    assert isinstance(environment, Calculator) and environment.num_terms == 3


def test_a_class_of_a_file_beside_the_task_file_that_imports_its_neighbour(folder: Path) -> None:
    environment = load_environment("agents/shop.py:Shop", {"customer": "Ada"}, folder)
    (task,) = environment.tasks("train")
    assert asyncio.run(environment.rollout(ScriptedChat("good day"), task)).reward == 1.0
    assert pickle.loads(pickle.dumps(task)) == task  # pickle finds its module by name


def test_an_absolute_path_needs_no_folder(folder: Path) -> None:
    load_environment(f"{folder}/agents/shop.py:Shop", {"customer": "Ada"}, "/nowhere")


def test_a_file_cannot_stand_in_for_a_module_of_its_name(folder: Path) -> None:
    write(folder / "agents" / "json.py", (folder / "agents" / "shop.py").read_text())
    load_environment("agents/json.py:Shop", {"customer": "Ada"}, folder)
    assert hasattr(sys.modules["json"], "dumps")


@pytest.mark.parametrize("spec", ["shop", "shop.py", "shop:", ":Shop", "shop.py:Not a name"])
def test_what_is_no_name_of_a_class(spec: str) -> None:
    assert "write package.module:Class or path/to/file.py:Class" in refusal(spec)


def test_a_module_that_is_not_there() -> None:
    assert "There is no module 'tandem_shop.agents' (Python finds no 'tandem_shop')" in refusal(
        "tandem_shop.agents:Shop"
    )
    assert "(Python finds no 'tandem.rl.shop')" in refusal("tandem.rl.shop:Shop")


def test_a_file_that_is_not_there(folder: Path) -> None:
    said = refusal("shop.py:Shop", {}, folder)
    assert f"There is no file {folder}/shop.py" in said and "folder of the task file" in said


def test_a_file_that_fails_says_how(folder: Path) -> None:
    write(folder / "needs.py", "import a_library_that_nobody_has")
    assert "needs.py failed with ModuleNotFoundError: No module named 'a_library" in refusal("needs.py:X", {}, folder)
    write(folder / "typo.py", "def f(:")
    assert "typo.py failed with SyntaxError" in refusal("typo.py:X", {}, folder)


def test_a_class_that_is_not_there(folder: Path) -> None:
    assert refusal("agents/shop.py:Shopp", {}, folder).endswith(
        "has no class 'Shopp'. Its environments are: Shop, SingleTurnEnvironment."
    ) or refusal("agents/shop.py:Shopp", {}, folder).endswith("has no class 'Shopp'. Its environments are: Shop.")


def test_a_class_that_is_no_environment(folder: Path) -> None:
    assert "must be a class that inherits from" in refusal("agents/shop.py:Customer", {}, folder)
    assert "must be a class that inherits from" in refusal("agents/shop.py:function", {}, folder)
    assert "is abstract: it lacks rollout." in refusal("agents/shop.py:HalfDone", {}, folder)


def test_options_that_the_class_does_not_take(folder: Path) -> None:
    said = refusal("agents/shop.py:Shop", {"customer": "Ada", "patient": 2, "x": 1}, folder)
    assert said == "Shop has no option 'patient', 'x'. Its options are: customer, patience."
    assert refusal("agents/shop.py:Shop", {}, folder) == "Shop needs a value for the option 'customer'."


def test_options_that_the_class_refuses(folder: Path) -> None:
    said = refusal("agents/shop.py:Shop", {"customer": "Ada", "patience": 0}, folder)
    assert "Shop" in said and "ValueError" in said and "patience must be at least 1" in said


def test_the_example_of_a_users_own_environment() -> None:
    environment = load_environment("own_environment.py:FirstOffered", {}, EXAMPLES / "train")
    train, held_out = environment.tasks("train"), environment.tasks("eval")
    assert set(train).isdisjoint(held_out)
    _, (first, *others) = task = train[-1]
    assert asyncio.run(environment.rollout(ScriptedChat(first), task)).reward == 1
    wrong = asyncio.run(environment.rollout(ScriptedChat(others[0]), task))
    assert (wrong.reward, wrong.metrics) == (0, {"is_offered": True})
