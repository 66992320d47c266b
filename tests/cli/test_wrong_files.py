"""Files given to commands: what is wrong with one is a sentence with its place, and the status is 2."""

import pytest
from typer.testing import CliRunner

from tandem.cli import main
from tandem.cli.commands.train import train
from tandem.runs.reporting.console import PlainConsole

WRONG = {
    "tabs": (b"base_models:\n\t- name: x\n", "line 2, column 1"),
    "latin-1": (b"name: caf\xe9\n", "line 1, column 10"),
    "utf-16": ("name: x\n".encode("utf-16"), "line 1, column 1"),
    "list": (b"- a\n- b\n", "line 1, column 1"),
    "empty": (b"", "line 1, column 1"),
    "NUL": (b"name: \0\n", "line 1, column"),
    "twice": (b"name: a\nname: b\n", "line 2, column 1"),
    "object": (b"name: !!python/object:os.system {}\n", "line 1, column 7"),
    "directory": (None, "directory"),
}
NAMES = ("file.yaml", "run[/INST].yaml", "run[lr=3].yaml", ":smile:.yaml", "a b\x1b[31m.yaml")
CASES = [*((fault, NAMES[0]) for fault in WRONG), *(("list", name) for name in NAMES[1:])]


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """A function that writes a wrong file and returns its path and place."""
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "40")

    def write(fault, name):
        content, place = WRONG[fault]
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.mkdir() if content is None else path.write_bytes(content)
        return path, place

    return write


def check(output, path, place):
    assert place.lower() in output.lower() and str(path).replace("\x1b", r"\x1b") in output
    assert len(output.strip().splitlines()) == 1


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_a_configuration(wrong, fault, name):
    path, place = wrong(fault, name)
    for arguments in (["up"], ["demo"], ["keys", "list"]):
        option = "--config" if arguments != ["demo"] else "-c"
        result = CliRunner().invoke(main.app, [*arguments, option, str(path)])
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
        check(result.output, path, place)


@pytest.mark.parametrize(("fault", "name"), CASES)
def test_a_task_file_and_the_configuration_that_it_names(wrong, tmp_path, capsys, fault, name):
    path, place = wrong(fault, name)
    task = tmp_path / "task"
    task.write_text(
        "name: a\nenvironment: {class: 'tandem.rl.environments.toy:Largest'}\ntraining: {jobs: 1}\n"
        f"service: {{config: {str(path).replace(chr(27), '@')!r}}}\n".replace("'", '"').replace("@", "\\e")
    )
    for file in (path, task):
        assert train(file, False, PlainConsole(), PlainConsole(stderr=True)) == 2
        check(capsys.readouterr().err, path, place)


def test_a_missing_file(wrong, tmp_path, capsys):
    for name in NAMES:
        path = tmp_path / name
        result = CliRunner().invoke(main.app, ["up", "--config", str(path)])
        assert result.exit_code == 2
        check(result.output, path, "no configuration file")
        assert train(path, False, PlainConsole(), PlainConsole(stderr=True)) == 2
        check(capsys.readouterr().err, path, "no such file")


@pytest.mark.parametrize("value", ["{", "[1]", "1", "{'a'}", "[/INST]"])
def test_a_variable_that_is_not_json(wrong, monkeypatch, value):
    monkeypatch.setenv("TANDEM_HTTP", value)
    result = CliRunner().invoke(main.app, ["up"])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    assert "http" in result.output.lower()
