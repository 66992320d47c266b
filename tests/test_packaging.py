"""Wheels and Ray working directories hold the package once and whole."""

import tomllib
import zipfile

from hatchling.builders.wheel import WheelBuilder
from paths import ROOT
from ray._private.runtime_env.packaging import create_package

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LINKS = [path.name for path in (ROOT / "tandem").iterdir() if path.is_symlink()]
FOLDERS = [name for name in LINKS if name != "examples"]

EXAMPLE = "tandem/examples/quickstart.py"  # `tandem demo` runs it


def test_every_link_is_relative_and_leads_to_the_folder_of_its_name():
    assert {"rl", "cluster", "serve", "client", "runs", "cli"} <= set(FOLDERS)
    for name in LINKS:
        assert str((ROOT / "tandem" / name).readlink()) == f"../{name}"


def test_a_wheel_holds_every_file_once(tmp_path):
    [wheel] = WheelBuilder(str(ROOT)).build(directory=str(tmp_path))
    held = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    code = [path.relative_to(ROOT) for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    weights = [path.relative_to(ROOT) for path in (ROOT / "rl" / "tiny" / "weights").iterdir()]
    assert len(code) > 150 and len(weights) == 6
    assert {f"tandem/{path}" for path in (*code, *weights)} | {"tandem/__init__.py", EXAMPLE} <= set(held)
    assert len(held) == len(set(held)) and {name.split("/")[0] for name in held} == {"tandem"}


def test_a_ray_working_directory_has_no_second_copy_of_the_package(tmp_path):
    """Ray follows links, and puts the working directory before the installed package."""
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    held = {name.split("/")[0] for name in zipfile.ZipFile(package).namelist()}
    assert "examples" in held
    assert held & {"tandem", *FOLDERS, "tests", ".venv", ".git"} == set()


def test_importing_by_the_name_of_a_folder_is_banned():
    banned = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(FOLDERS) <= set(banned)
