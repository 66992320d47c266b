"""Loading a pickle runs whatever its author wants, so nothing in Tandem loads one; nor YAML that makes objects."""

import ast
import hashlib
import json
import pickle
import re
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT

from tandem.cluster.engine.versions.finiteness import NotFiniteVersions, check_weights
from tandem.cluster.engine.versions.version_checks import VersionChecks
from tandem.cluster.engine.versions.version_loader import VersionLoader
from tandem.rl.checkpoint_files import ADAPTER
from tandem.rl.checkpoints import LearnerState, read_adapter, read_checkpoint, write_checkpoint
from tandem.rl.errors import CheckpointError
from tandem.rl.settings import LoraSettings

PACKAGES = ("rl", "cluster", "serve", "client", "runs", "cli")  # not tandem/: rglob follows no links
SOURCES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "pickle5"}
CALLS = {
    "torch.load", "torch.jit.load", "torch.package.PackageImporter", "torch.serialization.load",
    "numpy.load", "np.load", "pandas.read_pickle", "pd.read_pickle",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "eval", "exec", "compile",
}  # fmt: skip


def pickles(source):
    """Return everything in a source that could load a pickle, run text as code, or make objects of YAML."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if set(name.name.split(".")) & MODULES]
            case ast.ImportFrom(module=module, names=names):
                full = [f"{module}.{name.name}" for name in names]
                found += [name for name in full if set(name.split(".")) & MODULES or name in CALLS]
            case ast.Call(func=function) if ast.unparse(function) in CALLS:
                found.append(ast.unparse(function))
            case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                found.append("allow_pickle")
            case ast.keyword(arg="trust_remote_code", value=value) if ast.unparse(value) != "False":
                found.append("trust_remote_code")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_loads_pickles(path):
    assert pickles(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, cloudpickle as c",
        "from ray import cloudpickle",
        "from torch import load",
        "def f():\n    import torch\n    return torch.load(path)",
        "from joblib import load",
        "numpy.load(file, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
    ],
)
def test_a_module_that_did_would_be_noticed(source):
    assert pickles(source)


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


@pytest.fixture
def trace(tmp_path):
    """Where a payload would leave its file; that it does so is checked first."""
    path = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Payload(path))).close()
    path.unlink()
    return path


@pytest.fixture
def checkpoint(tmp_path, trace):
    """A checkpoint whose adapter is a pickle, under the names that loaders of pickles look for as well."""
    config = {"target_modules": ["q_proj"], "peft_type": "LORA", "r": 8, "lora_alpha": 16}
    directory = write_checkpoint(tmp_path, LearnerState({"w": torch.zeros(2)}), config, {}).path
    for name in ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"):
        torch.save(Payload(trace), directory / name)
    return directory


def sign(checkpoint):
    """Lets the manifest say what the files are now, as whoever put them there could."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        data = (checkpoint / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    listed = json.dumps(manifest["files"], sort_keys=True, separators=(",", ":"))
    manifest["digest"] = hashlib.sha256(listed.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("in_place", [True, False], ids=["as adapter_model.safetensors", "as adapter_model.bin"])
def test_a_checkpoint_with_a_pickled_adapter_is_refused_by_name(checkpoint, trace, in_place):
    adapter = checkpoint / ADAPTER
    if in_place:
        (checkpoint / "adapter_model.bin").replace(adapter)
        sign(checkpoint)
    else:
        adapter.unlink()
    for read in (read_checkpoint, read_adapter):
        with pytest.raises(CheckpointError, match=re.escape(str(adapter))):
            read(checkpoint)
    with pytest.raises(Exception, match=r"adapter_model\.safetensors|header"):
        check_weights(checkpoint, torch.float32)
    assert not trace.exists()


def test_the_engine_is_given_two_files_of_a_checkpoint_and_no_others(checkpoint, tmp_path, trace):
    core = SimpleNamespace(llm=SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32)))  # none of it runs
    fetch, own = (lambda digest: checkpoint), tmp_path / "own"
    own.mkdir()
    loader = VersionLoader(core, None, str(own), fetch, LoraSettings(), NotFiniteVersions(), VersionChecks())
    copied, _ = loader.private_copy("d" * 64)
    assert {path.name for path in copied.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert not trace.exists()
