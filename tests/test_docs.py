"""What the README tells people to type exists."""

import re

import pytest
import yaml
from paths import ROOT
from typer.testing import CliRunner

from tandem.cli.main import app
from tandem.cluster.config import TandemConfig
from tandem.serve.api.application import create_app
from tandem.serve.api.auth import declared_role

README = (ROOT / "README.md").read_text()


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))  # in a block of commands, or in a line
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
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_role_of_every_route_is_documented():
    table = re.findall(r"^\| (infer|train|admin) \| (\w+) \| (\S+) \|$", (ROOT / "docs/security.md").read_text(), re.M)
    declared = [
        (declared_role([dependency.call for dependency in route.dependant.dependencies]), method, route.path)
        for route in create_app(services=None).routes
        if route.path.startswith("/v1/")
        for method in route.methods
    ]
    assert sorted(table) == sorted(declared)
