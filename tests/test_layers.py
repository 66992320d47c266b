"""Imports point one way: serve -> cluster -> rl, runs -> client and rl; client imports nothing of Tandem."""

import json
import pkgutil
import subprocess
import sys

import pytest

import tandem.client
import tandem.cluster
import tandem.rl
import tandem.runs

FORBIDDEN = {
    "tandem.rl": {"ray", "vllm", "fastapi", "httpx", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.client": {"ray", "vllm", "torch", "fastapi", "pydantic", "openai", "sqlalchemy"}
    | {f"tandem.{layer}" for layer in ("rl", "cluster", "serve", "runs", "cli")},
    "tandem.runs": {"ray", "vllm", "torch", "fastapi", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.cluster": {"vllm", "fastapi", "sqlalchemy", "tandem.serve"},
}
IMPORT_ALL = """
import importlib, json, sys
for name in {names}:
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(names):
    """The modules that a new process has loaded once it has imported these."""
    code = IMPORT_ALL.format(names=names)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(json.loads(output.splitlines()[-1]))


@pytest.mark.parametrize(
    "package", [tandem.rl, tandem.client, tandem.runs, tandem.cluster], ids=lambda package: package.__name__
)
def test_a_layer_imports_nothing_from_above(package):
    names = [name for _, name, _ in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    loaded = modules_after(names)
    assert set(names) <= loaded
    assert loaded & FORBIDDEN[package.__name__] == set()


def test_what_every_process_of_a_service_imports_needs_no_torch():
    """Seven processes do at a start, and each would take seconds for it."""
    loaded = modules_after(["tandem.serve.app.graph", "tandem.cli.launch", "tandem.cluster.learners.worker"])
    assert loaded & {"torch", "transformers", "peft", "vllm"} == set()
