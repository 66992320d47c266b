"""Imports point one way: serve -> cluster -> rl, runs -> client and rl; client imports nothing of Tandem."""

import ast
import json
import os
import pkgutil
import subprocess
import sys
from collections import Counter

import pytest
from paths import ROOT

import tandem.cli
import tandem.client
import tandem.cluster
import tandem.rl
import tandem.runs
import tandem.serve

FORBIDDEN = {
    "tandem.rl": {"ray", "vllm", "fastapi", "httpx", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.client": {"ray", "vllm", "torch", "fastapi", "pydantic", "openai", "sqlalchemy"}
    | {f"tandem.{layer}" for layer in ("rl", "cluster", "serve", "runs", "cli")},
    "tandem.runs": {"ray", "vllm", "torch", "fastapi", "sqlalchemy", "tandem.cluster", "tandem.serve"},
    "tandem.cluster": {"vllm", "fastapi", "sqlalchemy", "tandem.serve"},
}
IMPORTS_OF_A_PROCESS = {"tandem.cluster.engine.core.core_imports"}  # vLLM, in the process from which cores are forked
LAYERS = ("rl", "cluster", "serve", "client", "runs", "cli")
PARTS = (
    *("adapters", "alerts", "api", "app", "finetuning", "ingest", "jobs", "modelarts", "observing", "store"),
    *("trajectories", "wandb", "web"),
)
PARTS += ("changes", "curves", "tinker")
SERVE = {f"tandem.serve.{part}" for part in PARTS}
ABOVE_API = ("alerts", "app", "finetuning", "modelarts", "wandb", "web")
HTTP = {"fastapi", "starlette"}
RULES = {  # package or module: what no import in its source may name, not even inside a function
    **{f"tandem.{layer}": {"tandem.cli"} for layer in LAYERS if layer != "cli"},
    "tandem.serve.tinker.store": {"tandem.serve.api", "tandem.serve.tinker.api", "tandem.serve.app"} | HTTP,
    "tandem.serve.store": SERVE - {"tandem.serve.store"} | HTTP,
    "tandem.serve.changes": SERVE - {"tandem.serve.changes", "tandem.serve.store"} | HTTP,
    "tandem.serve.curves": SERVE - {"tandem.serve.curves", "tandem.serve.store"} | HTTP,
    "tandem.serve.jobs": SERVE - {"tandem.serve.store", "tandem.serve.jobs"} | HTTP,
    "tandem.serve.adapters": SERVE - {"tandem.serve.adapters", "tandem.serve.jobs", "tandem.serve.store"} | HTTP,
    "tandem.serve.ingest": SERVE - {"tandem.serve.ingest"},
    "tandem.serve.api": {
        f"tandem.serve.{part}"
        for part in ("alerts", "app", "finetuning", "modelarts", "tinker", "trajectories", "wandb", "web")
    },
    "tandem.serve.web": SERVE - {"tandem.serve.web"},
    "tandem.serve.api.wire.requests": {"tandem.serve.store"},
    "tandem.serve.api.wire.responses": {"tandem.serve.store"},
    "tandem.serve.alerts": {f"tandem.serve.{part}" for part in ("app", "finetuning", "modelarts", "wandb")},
    "tandem.serve.app": {"tandem.serve.finetuning", "tandem.serve.modelarts", "tandem.serve.wandb"},
    "tandem.serve.finetuning": {"tandem.serve.app", "tandem.serve.modelarts", "tandem.serve.wandb"},
    "tandem.serve.finetuning.store": {f"tandem.serve.finetuning.{part}" for part in ("api", "data", "running")},
    "tandem.serve.finetuning.data": {f"tandem.serve.finetuning.{part}" for part in ("api", "running", "store")},
    "tandem.serve.finetuning.running": {"tandem.serve.finetuning.api"},
    "tandem.serve.finetuning.api": {"tandem.serve.finetuning.running"},
    "tandem.serve.observing": {f"tandem.serve.{part}" for part in ("app", "finetuning", "modelarts", "wandb")},
    "tandem.serve.modelarts": {"tandem.serve.app", "tandem.serve.wandb"},
    "tandem.serve.trajectories": {f"tandem.serve.{part}" for part in ("app", "finetuning", "modelarts", "wandb")},
    "tandem.serve.wandb": {"tandem.serve.app", "tandem.serve.finetuning", "tandem.serve.modelarts"},
    "tandem.serve.modelarts.store": {f"tandem.serve.modelarts.{part}" for part in ("api", "running", "settings")},
    "tandem.serve.modelarts.settings": {f"tandem.serve.modelarts.{part}" for part in ("api", "running", "store")},
    "tandem.serve.modelarts.running": {"tandem.serve.modelarts.api"},
    "tandem.serve.modelarts.api": {"tandem.serve.modelarts.running"},
}
REGISTRATIONS = {  # these add further APIs to the service, with the options of all deployments
    ("tandem.serve.api.application", "tandem.serve.alerts.routes"),
    ("tandem.serve.api.application", "tandem.serve.finetuning.routes"),
    ("tandem.serve.api.application", "tandem.serve.tinker.api.routes"),
    ("tandem.serve.api.application", "tandem.serve.trajectories.routes"),
    ("tandem.serve.api.application", "tandem.serve.wandb.routes"),
    ("tandem.serve.api.application", "tandem.serve.web.routes"),
    ("tandem.serve.api.application", "tandem.serve.trajectories.token_routes"),
    ("tandem.serve.api.application", "tandem.serve.observing.routes"),
    ("tandem.serve.api.application", "tandem.serve.modelarts.routes"),
    ("tandem.serve.app.graph", "tandem.serve.finetuning.deployment"),
    ("tandem.serve.app.graph", "tandem.serve.modelarts.deployment"),
    ("tandem.serve.modelarts.deployment", "tandem.serve.app.deployment_options"),
}
IMPORT_ALL = """
import gc, importlib, json, os, sys
gc.disable()  # it would take a fifth of the time
for name in {names}:
    importlib.import_module(name)
files = {{name: os.path.realpath(getattr(m, "__file__", None) or "") for name, m in list(sys.modules.items())}}
print(json.dumps(files))
"""
FOLDERS = tuple(f"{ROOT}{os.sep}{layer}{os.sep}" for layer in LAYERS)  # not .venv, which is below ROOT too


def modules_after(names):
    """The modules that a new process has loaded once it has imported these.

    Each file is one of them: one that is loaded under two names has two objects of each class.
    """
    code = IMPORT_ALL.format(names=names)
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    files = json.loads(output.splitlines()[-1])
    loaded = Counter(file for file in files.values() if file.startswith(FOLDERS))
    assert [file for file, count in loaded.items() if count > 1] == []
    assert loaded
    return set(files)


@pytest.mark.parametrize(
    "package", [tandem.rl, tandem.client, tandem.runs, tandem.cluster], ids=lambda package: package.__name__
)
def test_a_layer_imports_nothing_from_above(package):
    found = pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    names = [name for _, name, _ in found if name not in IMPORTS_OF_A_PROCESS]
    loaded = modules_after(names)
    assert set(names) <= loaded
    assert loaded & FORBIDDEN[package.__name__] == set()


def test_what_every_process_of_a_service_imports_needs_no_torch():
    """Seven processes do at a start, and each would take seconds for it."""
    loaded = modules_after(["tandem.serve.app.graph", "tandem.cli.deployment", "tandem.cluster.learners.worker"])
    assert loaded & {"torch", "transformers", "peft", "vllm"} == set()


def imports(path):
    """The modules that a file imports, with `from x import y` as both x and x.y."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def is_in(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def sources():
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            yield "tandem." + ".".join(path.relative_to(ROOT).with_suffix("").parts), path


@pytest.mark.parametrize("package", RULES)
def test_no_source_breaks_an_import_rule(package):
    checked = [(name, path) for name, path in sources() if is_in(name, [package])]
    broken = [
        f"{name} imports {imported}"
        for name, path in checked
        for imported in sorted(imports(path))
        if is_in(imported, RULES[package]) and not is_registration(name, imported)
    ]
    assert checked, "the package has moved"
    assert broken == []


def is_registration(name, imported):
    """True for `imported` as one of the registered modules, a name in it, or its package."""
    return any(name == importer and (is_in(imported, [m]) or is_in(m, [imported])) for importer, m in REGISTRATIONS)


def test_nobody_imports_a_layer_by_its_bare_name():
    """`import rl` from the root of the repository would make second objects of every class."""
    files = [path for folder in (*LAYERS, "tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]
    assert len(files) > 300
    assert [path for path in files if is_bare(imports(path))] == []


def is_bare(names):
    return {name.split(".")[0] for name in names} & set(LAYERS)
