"""Download, import and fork with the client, and `tandem export`, against the real application on the tiny model."""

import json
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from serve_fakes import Trials
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from tandem.cli.commands import export as export_command
from tandem.cli.main import app as commands
from tandem.client import ConflictError, InvalidRequestError, NotFoundError, TransferError
from tandem.client import adapters as operations
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.rl.tiny.model import TINY_MODEL_DIR

LORA = {"r": 4, "alpha": 32, "target_modules": ["q_proj", "down_proj"], "seed": 1}


@pytest.fixture
def services(services):
    preparation = PreparationWorker({TINY.name: ResolvedBaseModel(TINY)}, services.artifacts)
    return replace(services, preparation=preparation, trials=Trials())


@pytest.fixture
def model(client):
    return client.register_model("agent", project="project", base_model=TINY.name, lora=LORA)


@pytest.fixture
def trained(client, model, tmp_path):
    """A directory with an adapter of this model's settings that changes something."""
    directory = tmp_path / "trained"
    client.download_adapter(model, directory, 0)
    tensors = load_file(directory / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(2)
    changed = {name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in tensors.items()}
    save_file(changed, directory / "adapter_model.safetensors")
    return directory


def names(directory):
    return sorted(file.name for file in directory.iterdir())


def test_what_is_imported_comes_back_and_can_be_forked(client, model, trained, tmp_path, monkeypatch):
    assert model.lora == LORA
    version = client.import_adapter(model, trained, idempotency_key="k")
    assert client.import_adapter(model.name, trained, idempotency_key="k") == version
    assert client.import_adapter("project/agent", trained, step=5, idempotency_key="other").step == 5
    monkeypatch.setattr(operations, "PIECE_BYTES", 1000)  # many pieces
    adapter = client.download_adapter(model.name, tmp_path / "new" / "back", 1)
    assert (adapter.step, adapter.digest, adapter.base_model_path) == (1, version.digest, "builtin:tiny")
    assert names(adapter.directory) == ["adapter_config.json", "adapter_model.safetensors"]
    ours, theirs = (load_file(path / "adapter_model.safetensors") for path in (trained, adapter.directory))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    fork = client.fork_model(model.name, "fork", step=1)
    assert client.fork_model(model, "fork", step=1) == fork
    assert (fork.step, fork.lora, fork.origin["step"]) == (1, LORA, 1)
    with pytest.raises(ConflictError):
        client.fork_model(model, "fork", return_existing=False)
    with pytest.raises(InvalidRequestError):
        client.fork_model(model, "another", optimizer=True)
    with pytest.raises(NotFoundError):
        client.fork_model("project/nobody", "another")


def test_a_directory_appears_only_when_it_is_complete(client, model, tmp_path, network):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(FileExistsError):
        client.download_adapter(model, full)
    (tmp_path / "empty").mkdir()
    client.download_adapter(model, tmp_path / "empty")
    assert len(names(tmp_path / "empty")) == 2

    async def damaged(scope, receive, send):
        headers = [(b"content-length", b"3"), (b"repr-digest", b"sha-256=:AAAA:"), (b"x-policy-digest", b"d")]
        await send({"type": "http.response.start", "status": 206, "headers": headers})
        await send({"type": "http.response.body", "body": b"bad"})

    network.answers = [network._app, damaged]  # the model, and the first file
    with pytest.raises(TransferError):
        client.download_adapter(model, tmp_path / "new")
    assert not [name for name in names(tmp_path) if "new" in name]


@pytest.fixture
def tandem(url, key, monkeypatch):
    monkeypatch.setenv("TANDEM_URL", url)
    monkeypatch.setenv("TANDEM_API_KEY", key)
    monkeypatch.setenv("COLUMNS", "300")
    return lambda *arguments: CliRunner().invoke(commands, [str(argument) for argument in arguments])


@torch.no_grad()
def logits(model):
    return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize("connect", ["sync"], indirect=True)
def test_an_export_computes_what_the_version_computes(client, model, trained, tmp_path, tandem):
    client.import_adapter(model, trained)
    plain = AutoModelForCausalLM.from_pretrained(TINY_MODEL_DIR)
    expected = logits(PeftModel.from_pretrained(plain, trained))
    done = tandem("export", model.name, tmp_path / "adapter")
    assert done.exit_code == 0 and "agent:step1" in done.output
    exported = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY_MODEL_DIR), tmp_path / "adapter")
    torch.testing.assert_close(logits(exported), expected, rtol=0, atol=0)
    done = tandem("export", f"{model.name}:step1", tmp_path / "merged", "--merge")
    assert done.exit_code == 0, done.output
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-4)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} <= set(names(tmp_path / "merged"))
    assert "imported" in tandem("models").output
    client.fork_model(model, "fork")
    assert "fork of team/project/agent:step1" in tandem("models").output


@pytest.mark.parametrize("connect", ["sync"], indirect=True)
def test_an_export_that_cannot_be_leaves_nothing(client, model, tmp_path, tandem, monkeypatch):
    target = tmp_path / "out"

    def refusal(*arguments):
        done = tandem("export", *arguments)
        assert done.exit_code == 1 and not target.exists()
        assert not [name for name in names(tmp_path) if name.startswith(".out")]
        return " ".join(done.output.split())

    assert "hasn't been trained" in refusal(f"{model.name}:step9", target)
    assert "no model project/nobody" in refusal("project/nobody", target)
    assert "--merge" in refusal(model.name, target, "--base", "x")
    assert "isn't a directory here" in refusal(model.name, target, "--merge", "--base", tmp_path / "nowhere")
    (tmp_path / "quantized").mkdir()
    config = json.loads((TINY_MODEL_DIR / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    assert "quantized" in refusal(model.name, target, "--merge", "--base", tmp_path / "quantized")
    monkeypatch.setattr(export_command, "SPARE_BYTES", 1 << 62)
    assert "Make room" in refusal(model.name, target, "--merge")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    assert "isn't an empty directory" in " ".join(tandem("export", model.name, tmp_path / "mine").output.split())
    assert names(tmp_path / "mine") == ["file"]
