"""Modules beside an environment: its code imports them first, and nothing else sees them."""

import importlib
import pickle
import subprocess
import sys
from textwrap import dedent

import pytest

from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment

ENVIRONMENT = """
from tandem.rl.environments.base import SingleTurnEnvironment

{imports}

class Env(SingleTurnEnvironment[int]):
    def tasks(self, split):
        return [1]

    def messages(self, task):
        return []

    def reward(self, task, answer):
        {late}
        return float(answer == {value})
"""
HIDING = ("secrets", "types", "random", "json", "torch", "numpy", "logging", "datasets", "httpx", "yaml", "typing")


@pytest.fixture
def folder(tmp_path):
    path, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    yield tmp_path
    sys.path[:], sys.meta_path[:] = path, finders
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def load(folder, imports="", value="0", late="pass"):
    text = ENVIRONMENT.format(imports=dedent(imports), value=value, late=late)
    (folder / "envs.py").write_text(text)
    return load_environment("envs.py:Env", base_dir=folder)


@pytest.mark.parametrize("name", HIDING)
def test_a_module_that_hides_another_is_seen_by_the_environment_alone(folder, name):
    (folder / f"{name}.py").write_text("MINE = 'mine'")
    before = sys.modules.get(name)
    environment = load(folder, f"import {name}\nfrom {name} import MINE", f"MINE + {name}.MINE")
    assert environment.reward(1, "minemine") == 1
    assert sys.modules.get(name) is before


@pytest.mark.parametrize("name", HIDING)
def test_it_is_seen_by_an_import_inside_a_function_and_by_other_modules_beside_it(folder, name):
    (folder / f"{name}.py").write_text("MINE = 'mine'")
    (folder / "helper_of_this_test.py").write_text(f"from {name} import MINE as FOUND")
    environment = load(folder, "from helper_of_this_test import FOUND", "FOUND + late.MINE", f"import {name} as late")
    assert environment.reward(1, "minemine") == 1


def test_packages_with_their_parts_may_hide_others_too(folder):
    for package in ("email", "plain_of_this_test"):
        (folder / package / "inner").mkdir(parents=True)
        (folder / package / "__init__.py").write_text("from .part import A")
        (folder / package / "part.py").write_text(f"import {package}.inner.deep\nfrom secrets import S\nA = 'a'")
        (folder / package / "inner" / "__init__.py").touch()
        (folder / package / "inner" / "deep.py").write_text("B = 'b'")
    (folder / "secrets.py").write_text("S = 's'")
    imports = """
    import email.inner.deep
    import email.inner.deep as deep
    from email import part, A
    from plain_of_this_test.part import S
    """
    environment = load(folder, imports, "email.inner.deep.B + deep.B + part.A + A + S")
    assert environment.reward(1, "bbaas") == 1
    assert not hasattr(importlib.import_module("email"), "inner")


def test_installed_modules_come_before_a_mere_folder_and_tandem_before_all(folder):
    for name in ("httpx", "tandem"):
        (folder / name).mkdir()
    (folder / "tandem" / "__init__.py").write_text("raise RuntimeError")
    environment = load(
        folder, "import httpx\nfrom tandem.rl.errors import RLError", "RLError.__name__ + httpx.__name__"
    )
    assert environment.reward(1, "RLErrorhttpx") == 1


def test_other_modules_are_shared_as_usual(folder):
    (folder / "usual_of_this_test.py").write_text("class Task: pass")
    environment = load(folder, "import usual_of_this_test as usual\nenv_task = usual.Task()", "0")
    module = importlib.import_module("usual_of_this_test")
    assert sys.modules[type(environment).__module__].usual is module
    assert isinstance(pickle.loads(pickle.dumps(module.Task())), module.Task)


def test_a_fault_in_a_neighbour_is_an_error_of_loading(folder):
    (folder / "secrets.py").write_text("raise RuntimeError('no key')")
    with pytest.raises(EnvironmentLoadingError, match="no key"):
        load(folder, "import secrets")
    with pytest.raises(EnvironmentLoadingError, match="absent_of_this_test"):
        load(folder, "import absent_of_this_test")


def test_the_rest_of_the_program_imports_as_if_the_folder_were_empty(folder):
    """In a new process, which hasn't imported these modules yet."""
    late = ["secrets", "types", "random", "asyncio", "httpx", "numpy", "logging", "json", "statistics"]
    names = ["h2", "socksio", "ray", "torch", *late]
    for name in names:
        (folder / f"{name}.py").write_text("raise RuntimeError('imported by the program')")
    (folder / "envs.py").write_text(ENVIRONMENT.format(imports="", value="0", late="pass"))
    code = f"""if True:
        from tandem.rl.environments.loading import load_environment
        load_environment("envs.py:Env", base_dir={str(folder)!r})
        import {", ".join(late)}
        try:
            httpx.Client(http2=True, proxy="socks5://127.0.0.1:9")  # it tries to import h2 and socksio
        except ImportError:
            pass
    """
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
