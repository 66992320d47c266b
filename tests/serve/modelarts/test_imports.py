"""Other code imports the registration of the package only, and its parts depend in one direction."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = "tandem.serve.modelarts"
REGISTRATION = {f"{PACKAGE}.routes", f"{PACKAGE}.deployment"}
FORBIDDEN = {
    "store": ("api", "running", "settings"),
    "settings": ("api", "running", "store"),
    "running": ("api",),
    "api": ("running",),
}


def imported(file: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            is_package = node.module in (PACKAGE, "tandem.serve")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if is_package else {node.module}
    return {name for name in names if name.startswith(PACKAGE)}


def test_other_code_imports_the_registration_only():
    files = [
        file for layer in ("rl", "cluster", "serve", "client", "runs", "cli") for file in (ROOT / layer).rglob("*.py")
    ]
    others = [file for file in files if ROOT / "serve" / "modelarts" not in file.parents]
    assert len(others) > 100
    assert set().union(*map(imported, others)) == REGISTRATION


@pytest.mark.parametrize("part", FORBIDDEN)
def test_parts_depend_in_one_direction(part):
    files = list((ROOT / "serve" / "modelarts" / part).glob("*.py"))
    assert files
    names = set().union(*map(imported, files))
    assert not [name for name in names for other in FORBIDDEN[part] if name.startswith(f"{PACKAGE}.{other}")]
