"""`tandem doctor`: every line says OK or what to do, and nothing changes."""

import hashlib
import json
import shutil
import socket
import sqlite3
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tandem.cli.doctor import machine
from tandem.cli.doctor.report import Report
from tandem.cli.main import app
from tandem.runs.reporting.console import PlainConsole
from tandem.serve.store.migrations import HEAD
from tandem.serve.store.store import Store

CHECKS = {"versions", "GPUs", "shared memory", "home", "disk", "port", "store", "artifacts", "model tandem/tiny"}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A home and a port of this test's own, and a machine without GPUs."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for name in ("RAY_ADDRESS", "CUDA_VISIBLE_DEVICES", "TANDEM_STORE_URL", "TANDEM_ARTIFACTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TANDEM_HTTP__PORT", str(port))
    monkeypatch.setattr(machine, "local_gpus", list)


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, ["doctor", *arguments])
    assert isinstance(result.exception, SystemExit | None) and "Traceback" not in result.output
    return result


def lines(result: Result) -> dict[str, str]:
    """Return the status of each check by its name."""
    shown = [line for line in result.output.splitlines() if line.startswith(("OK ", "FIX "))]
    return {line[4:].partition(": ")[0]: line[:3].strip() for line in shown}


def faults(result: Result) -> set[str]:
    return {name for name, status in lines(result).items() if status == "FIX"}


def with_model(tmp_path: Path, directory: Path, **settings) -> tuple[str, str]:
    file = tmp_path / "tandem.yaml"
    file.write_text(json.dumps({"base_models": [{"name": "m", "path": str(directory), **settings}]}))
    return "--config", str(file)


def test_a_usual_machine_is_well_and_stays_as_it_is(tmp_path):
    result = run()
    assert result.exit_code == 0 and not faults(result)
    assert set(lines(result)) >= CHECKS
    assert "no GPU on this machine" in result.output
    assert list((tmp_path / "home").iterdir()) == []  # neither a store nor artifacts


def test_a_store_is_read_and_not_changed(tmp_path, monkeypatch):
    file = tmp_path / "tandem.db"
    monkeypatch.setenv("TANDEM_STORE_URL", f"sqlite:///{file}")
    Store(f"sqlite:///{file}").close()
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    result = run()
    assert f"has schema {HEAD}" in result.output and result.exit_code == 0
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before


def test_a_store_of_an_earlier_release_is_not_migrated(tmp_path, monkeypatch):
    file = tmp_path / "tandem.db"
    monkeypatch.setenv("TANDEM_STORE_URL", f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE other (x)")
    result = run()
    assert result.exit_code == 0 and "the first start creates its tables" in result.output
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("other",)]


@pytest.mark.parametrize("content", ["later release", "no database"])
def test_a_store_that_cannot_be_used(tmp_path, monkeypatch, content):
    file = tmp_path / "tandem.db"
    monkeypatch.setenv("TANDEM_STORE_URL", f"sqlite:///{file}")
    if content == "no database":
        file.write_bytes(b"anything" * 1000)
    else:
        with sqlite3.connect(file) as connection:
            connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            connection.execute("INSERT INTO alembic_version VALUES ('9999_later')")
    result = run()
    assert result.exit_code == 1 and faults(result) == {"store"}


def test_artifacts_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TANDEM_ARTIFACTS", str(tmp_path / "file" / "artifacts"))
    assert faults(run()) == {"artifacts"}


def test_a_port_that_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("TANDEM_HTTP__PORT", str(server.getsockname()[1]))
        result = run()
    assert result.exit_code == 1 and faults(result) == {"port"}
    assert "TANDEM_HTTP__PORT" in result.output


def test_little_space(monkeypatch):
    monkeypatch.setenv("TANDEM_LIMITS__MIN_FREE_DISK_BYTES", str(1 << 60))
    assert faults(run()) == {"disk"}


def _remove(name):
    return lambda directory: (directory / name).unlink()


def _as_encoder(directory):
    (directory / "config.json").write_text(json.dumps({"model_type": "t5"}))


def _as_index(directory):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "missing.safetensors"}}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_remove("config.json"), "Unrecognized model"),
        (_remove("model.safetensors"), "no weights"),
        (_as_index, "missing.safetensors"),
        (_as_encoder, "decoder"),
        (_remove("chat_template.jinja"), "chat template"),
    ],
)
def test_a_model_that_cannot_be_used(tmp_path, tiny_model, change, said):
    directory = tmp_path / "model"
    shutil.copytree(tiny_model, directory)
    change(directory)
    result = run(*with_model(tmp_path, directory, max_model_len=256))
    assert result.exit_code == 1 and faults(result) == {"model m"}
    assert said in result.output


def test_a_target_that_the_model_does_not_have(tmp_path, tiny_model):
    result = run(*with_model(tmp_path, tiny_model, lora={"target_modules": ["c_attn"]}))
    assert faults(result) == {"model m"} and "c_attn" in result.output


def test_a_torchvision_that_belongs_to_another_torch_is_a_fault(tmp_path, monkeypatch):
    module = tmp_path / "torchvision.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    reports = []
    for content in ("raise RuntimeError('operator torchvision::nms does not exist')", "nothing = None"):
        module.write_text(content)
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
        reports.append(Report(PlainConsole()))
        machine.check_torchvision(reports[-1])
        monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    (broken,), (whole,) = (report.lines for report in reports)
    assert not broken.is_ok and "torchvision::nms" in broken.text and "ninstall" in broken.text
    assert whole.is_ok


def test_where_torchvision_is_not_installed_nothing_is_said_of_it(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    machine.check_torchvision(report := Report(PlainConsole()))
    assert not report.lines


def test_a_plan_for_another_machine(tmp_path, tiny_model):
    result = run(*with_model(tmp_path, tiny_model, gpu_memory_bytes=80 * 10**9))
    assert result.exit_code == 0 and "KV cache" in result.output and "GPU of 80.0 GB" in result.output
    small = run(*with_model(tmp_path, tiny_model, gpu_memory_bytes=1 << 30))
    assert faults(small) == {"memory of m"}


def test_a_gpu_that_is_configured_and_not_there(tmp_path, tiny_model):
    result = run(*with_model(tmp_path, tiny_model, learners={"device": "cuda"}))
    assert faults(result) == {"GPUs"}


def test_computing_on_a_gpu_that_is_not_there():
    result = run("--gpu")
    assert result.exit_code == 1 and faults(result) == {"compute"}
    assert "--device cpu" in result.output


def test_a_library_that_fails_is_a_line(monkeypatch):
    def broken() -> None:
        raise RuntimeError("anything")

    monkeypatch.setattr(machine, "local_gpus", broken)
    assert faults(run()) == {"GPUs"}


def test_addresses_of_alerts_and_traces_are_found_or_named_without_their_secrets(tmp_path):
    hooks = [{"url": "http://127.0.0.1:9/secret-path"}, {"url": "https://no-such-host.invalid/secret-path"}]
    file = tmp_path / "tandem.yaml"
    file.write_text(json.dumps({"alerts": hooks, "tracing": {"endpoint": "http://127.0.0.1:4318/v1/traces"}}))
    result = run("--config", str(file))
    assert faults(result) == {"webhook 2"} and lines(result)["traces"] == "OK"
    assert "alerts.1.url" in result.output and "secret-path" not in result.output
