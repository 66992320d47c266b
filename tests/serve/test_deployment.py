"""The configuration of the service under `serve deploy`, and its first key."""

import hashlib

import pytest
import yaml
from paths import ROOT
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from tandem.cli.main import app
from tandem.cluster.config import TandemConfig
from tandem.serve.deployment import configuration
from tandem.serve.keys import ensure_admin_key, generate_key
from tandem.serve.store.store import Store

BASE = {"name": "a/b", "path": "x"}
SERVE_YAML = ROOT / "deploy/serve.yaml"


def test_arguments_are_what_a_configuration_file_holds(monkeypatch, tmp_path):
    settings = {"base_models": [BASE], "http": {"api_replicas": 2}, "artifacts": "s3://bucket/x"}
    file = tmp_path / "tandem.yaml"
    file.write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("TANDEM_STORE_URL", "postgresql://me:secret@there/db")
    inline, from_file = configuration(settings), configuration({"config_file": str(file)})
    assert inline == from_file == TandemConfig.load(file)
    assert (inline.http.api_replicas, inline.artifacts) == (2, "s3://bucket/x")
    assert inline.resolved_store_url == "postgresql://me:secret@there/db"


@pytest.mark.parametrize(
    ("settings", "environment", "named"),
    [
        ({"http": {"port": 8000}}, {}, "http.port"),
        ({"http": {"host": "0.0.0.0", "port": 9000}}, {}, "http.host and http.port"),
        ({}, {"TANDEM_HTTP__PORT": "9000"}, "http.port"),
        ({}, {"tandem_http__host": "::"}, "http.host"),
        ({}, {"TANDEM_HTTP": '{"host": "::"}'}, "http.host"),
    ],
)
@pytest.mark.parametrize("as_file", [False, True])
def test_an_address_that_serve_would_ignore_is_rejected(monkeypatch, tmp_path, settings, environment, named, as_file):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if as_file:
        (tmp_path / "tandem.yaml").write_text(yaml.safe_dump(settings))
        settings = {"config_file": str(tmp_path / "tandem.yaml")}
    with pytest.raises(ValueError, match=named):
        configuration(settings)


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ({"base_models": [BASE], "stor_url": "x"}, "stor_url"),
        ({"config_file": "/nowhere/tandem.yaml"}, "/nowhere/tandem.yaml"),
        ({"config_file": "x", "artifacts": "y"}, "config_file and also artifacts"),
        ({"admin_key_sha256": "tdm_the-key-itself"}, "admin_key_sha256"),
    ],
)
def test_a_fault_is_named_and_no_value_is_shown(args, named):
    with pytest.raises(ValueError) as error:
        configuration(args)
    assert named in str(error.value)
    assert "the-key-itself" not in str(error.value)


def test_the_shipped_serve_configuration_is_valid():
    parsed = ServeDeploySchema.model_validate(yaml.safe_load(SERVE_YAML.read_text()))
    assert set(yaml.safe_load(SERVE_YAML.read_text())) <= set(ServeDeploySchema.model_fields)  # others are ignored
    [application] = parsed.applications
    assert application.import_path == "tandem.serve.deployment:application"
    assert configuration(application.args) == TandemConfig()


def test_a_generated_key_is_an_admin_from_the_first_start_until_it_is_revoked(http, store):
    shown = CliRunner().invoke(app, ["keys", "generate"])
    key, line = shown.stdout.split("\n", 1)
    config = configuration(yaml.safe_load(line))
    assert config.admin_key_sha256 == hashlib.sha256(key.encode()).hexdigest()

    http.headers["Authorization"] = f"Bearer {key}"
    assert http.get("/v1/preview/keys").status_code == 401
    for _ in range(2):  # each start does it
        ensure_admin_key(store, config)
    keys = http.get("/v1/preview/keys").json()["data"]
    [own] = [row for row in keys if row["name"] == "of the configuration"]
    assert (own["role"], own["entity"]) == ("admin", "default")

    assert store.keys.revoke(own["id"])
    ensure_admin_key(store, config)
    assert http.get("/v1/preview/keys").status_code == 401


def test_without_one_in_the_configuration_there_is_no_key(new_url):
    store = Store(new_url)
    ensure_admin_key(store, TandemConfig())
    assert not store.keys.exist()
    store.close()


def test_generated_keys_differ():
    assert generate_key() != generate_key()
