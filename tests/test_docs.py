"""What the README tells people to type exists."""

import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tandem.cluster.config import TandemConfig
from tandem.serve.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", README))
    assert {"demo", "up", "test"} <= named <= targets


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`tandem ([a-z]+)", README))))
def test_every_command_exists(command):
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output


def test_every_command_is_documented():
    listed = {command.name or command.callback.__name__ for command in app.registered_commands}
    listed |= {group.name for group in app.registered_groups}
    assert listed == {name for name in listed if f"`tandem {name}`" in README}


def test_the_example_configuration_is_valid(tmp_path):
    [example] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    path = tmp_path / "tandem.yaml"
    path.write_text(example)
    config = TandemConfig.load(path)
    assert config.base_model("qwen3-4b").lora.r == 16
    assert set(yaml.safe_load(example)) <= set(TandemConfig.model_fields)


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
