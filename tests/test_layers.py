"""Imports point one way: serve -> cluster -> rl, and serve -> runs -> rl."""

import json
import pkgutil
import subprocess
import sys

import pytest

import tandem.cluster
import tandem.rl
import tandem.runs

FORBIDDEN = {
    "tandem.rl": {"ray", "vllm", "fastapi", "httpx", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.runs": {"ray", "vllm", "torch", "fastapi", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.cluster": {"vllm", "fastapi", "sqlalchemy", "tandem.serve"},
}
IMPORT_ALL = """
import importlib, json, sys
for name in {names}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize("package", [tandem.rl, tandem.runs, tandem.cluster], ids=lambda package: package.__name__)
def test_a_layer_imports_nothing_from_above(package):
    names = [name for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    code = IMPORT_ALL.format(names=names)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(json.loads(output.splitlines()[-1]))
    assert set(names) <= loaded
    assert loaded & FORBIDDEN[package.__name__] == set()
