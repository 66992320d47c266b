"""Commands, files and options that the documentation names exist."""

import re
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from paths import ROOT
from typer.testing import CliRunner

from tandem.cli.main import app
from tandem.cluster.config import TandemConfig
from tandem.serve.api.application import create_app
from tandem.serve.api.auth import declared_role

OF_WANDB = ("/graphql", "/files/{entity}/{project}/{run}/file_stream")
README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def made(text):
    """The targets of make that a text names, in a block of commands or in a line."""
    return set(re.findall(r"(?:^|`|run: )make ([a-z0-9-]+)", text, re.MULTILINE))


def test_every_make_target_exists():
    assert {"demo", "up", "test"} <= made(README)
    for page in PAGES:
        assert made(page.read_text()) <= TARGETS, page.name


def test_the_workflow_runs_what_the_local_check_runs_on_each_supported_python():
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    matrix = jobs["test"]["strategy"]["matrix"]
    lanes = re.search(r"^test: (.*?) *##", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert matrix["lane"] == lanes
    assert set(commands) == {"make install", "make lint", "make ${{ matrix.lane }}"}
    assert made((ROOT / ".ci/run").read_text()) <= {"install", "lint", "test"} <= TARGETS
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert requires == ">=3.11,<3.13" and matrix["python"] == ["3.11", "3.12"]


def test_the_programs_of_the_commit_hooks_are_installed():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    programs = {hook["entry"].split()[0] for hook in hooks if hook["language"] == "system"}
    assert programs == {".venv/bin/ruff", ".venv/bin/mypy"}
    assert all(Path(sys.executable).with_name(Path(program).name).is_file() for program in programs)


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
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_each_invariant_names_tests_that_exist():
    rows = re.findall(r"^\| \*\*.*\|$", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE)
    assert len(rows) >= 10
    for row in rows:
        shown_by = row.split("|")[2]
        named, files = re.findall(r"`(test_\w+)`", shown_by), re.findall(r"\]\((tests/[\w/.]+)\)", shown_by)
        text = "".join((ROOT / file).read_text() for file in files)
        assert named and all(f"def {name}(" in text for name in named), row


def test_pictures_are_well_formed_and_opaque():
    """A background of their own keeps them legible on light and dark pages."""
    pictures = [*(ROOT / "docs/images").glob("*.svg")]
    assert pictures
    for picture in pictures:
        _, background, *_ = [child for child in ElementTree.parse(picture).getroot() if not child.tag.endswith("defs")]
        assert background.tag.endswith("rect") and background.get("fill", "none") != "none", picture.name


def anchors(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_linked_headings_exist():
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            text = ((page.parent / target) if target else page).read_text()
            assert anchor in anchors(text), (page.name, target, anchor)


def test_the_index_lists_every_page():
    linked = set(re.findall(r"\]\(([^)#:]+)", (ROOT / "docs/README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= linked
    assert {f"../{page.name}" for page in ROOT.glob("*.md")} <= linked


def test_the_changelog_has_the_released_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^## {re.escape(version)}$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_role_of_every_route_is_documented():
    table = re.findall(r"^\| (infer|train|admin) \| (\w+) \| (\S+) \|$", (ROOT / "docs/security.md").read_text(), re.M)
    declared = [
        (declared_role([dependency.call for dependency in route.dependant.dependencies]), method, route.path)
        for route in create_app(services=None).routes
        if route.path.startswith(("/v1/", "/api/v1/")) or route.path in {*OF_WANDB, "/metrics"}
        for method in route.methods
    ]
    assert sorted(table) == sorted(declared)


def test_every_option_of_the_tinker_api_is_documented():
    table = (ROOT / "docs/tinker.md").read_text().partition("## Configuration")[2]
    assert set(re.findall(r"`(\w+)`", table)) >= set(TandemConfig.model_fields["tinker"].annotation.model_fields)
