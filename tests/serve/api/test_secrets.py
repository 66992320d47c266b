"""Secrets never reach logs, error bodies or the output of commands."""

import logging
import stat

import pytest
from serve_fakes import groups
from sqlalchemy.exc import IntegrityError
from typer.testing import CliRunner

from tandem.cli.main import app as tandem
from tandem.cluster.config import TandemConfig
from tandem.cluster.telemetry.redaction import without_keys
from tandem.serve.keys import create_key
from tandem.serve.store.tables.training import ApiKeyRow

PASSWORD = "hunter2hunter2"
REASONING = "what the agent thought about its customer"


def test_a_key_in_the_wrong_place_is_not_repeated(http, key, model, caplog):
    job = {"model_id": model["id"], "trajectory_groups": groups()}
    requests = [
        ("GET", f"/v1/{key}", {}),
        ("PATCH", f"/v1/preview/models/{key}", {}),
        ("GET", f"/v1/preview/models/{key}", {}),
        ("GET", "/v1/preview/models", {"params": {"after": key}}),
        ("GET", "/v1/preview/models", {"params": {"limit": key}}),
        ("POST", "/v1/preview/models", {"json": {key: key}}),
        ("POST", "/v1/preview/models", {"json": {"project": "p", "name": "n", "base_model": key}}),
        ("POST", "/v1/preview/models", {"json": {"project": "p", "name": "n", "base_model": "b", "entity": key}}),
        ("POST", "/v1/chat/completions", {"json": {"model": key, "messages": []}}),
        ("POST", "/v1/preview/training-jobs", {"json": {**job, "model_id": key}}),
        ("POST", "/v1/preview/training-jobs", {"json": {**job, "experimental_config": {key: 1}}}),
        ("POST", "/v1/preview/training-jobs", {"json": {**job, "experimental_config": {"ppo": key}}}),
        ("POST", "/v1/preview/training-jobs", {"content": f'{{"model_id": {key}'}),
        ("GET", "/v1/models", {"headers": {"Authorization": f"Bearer {key}x"}}),
        ("GET", "/v1/models", {"headers": {"Authorization": f"Basic {key}"}}),
    ]
    with caplog.at_level(logging.DEBUG, "tandem"):
        for method, path, request in requests:
            response = http.request(method, path, **request)
            assert 400 <= response.status_code < 500, (method, path, response.text)
            assert key not in response.text, (method, path, response.text)
    assert key not in "".join(map(logging.Formatter().format, caplog.records))


def test_an_unexpected_failure_logs_neither_keys_nor_headers(http, key, services, monkeypatch, caplog):
    def fail(*_, **__):
        raise KeyError("unexpected")

    monkeypatch.setattr(services.store.models, "get", fail)
    with caplog.at_level(logging.DEBUG, "tandem"):
        job = {"model_id": "6f0a4b06-26ca-4d3c-8b8a-7d8c2a5c1b3e", "trajectory_groups": groups()}
        response = http.post("/v1/preview/training-jobs", json=job, headers={"Idempotency-Key": key})
    assert response.status_code == 500
    logged = "".join(map(logging.Formatter().format, caplog.records))
    assert "unexpected" in logged
    assert key not in logged + response.text and "Bearer" not in logged


def test_a_refused_write_does_not_tell_what_was_to_be_written(store, add_model):
    model = add_model()
    with pytest.raises(IntegrityError) as caught, store.database.write() as session:
        session.add(
            ApiKeyRow(id=model.id, name=None, entity=REASONING, key_sha256=REASONING, created_at=store.database.now())
        )
    assert REASONING not in str(caught.value)


def test_a_store_that_does_not_answer_keeps_its_password(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    for url in (
        f"postgresql://tandem:{PASSWORD}@127.0.0.1:9/tandem",
        f"postgresql://tandem@127.0.0.1:9/tandem?password={PASSWORD}",
        f"postgresql://tandem:{PASSWORD}@127.0.0.1:none/tandem",
        f"mysql://tandem:{PASSWORD}@127.0.0.1/tandem",
        f"{PASSWORD} is no URL",
    ):
        monkeypatch.setenv("TANDEM_STORE_URL", url)
        with caplog.at_level(logging.DEBUG):
            result = CliRunner().invoke(tandem, ["keys", "list"])
        assert result.exit_code == 2, result.output
        assert result.output.strip() and PASSWORD not in result.output
        assert PASSWORD not in repr(TandemConfig())
    assert PASSWORD not in caplog.text


def test_what_is_kept_at_home_is_for_its_user_alone(monkeypatch, tmp_path):
    home = tmp_path / "home"
    monkeypatch.setenv("TANDEM_HOME", str(home))
    made = CliRunner().invoke(tandem, ["keys", "create", "--name", "k"])
    assert made.exit_code == 0, made.output
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()} == {0o600}


def test_only_what_looks_like_a_key_is_taken_out(store):
    key = create_key(store, "k", "team")
    assert without_keys(f"a {key}, tdm_short") == "a tdm_..., tdm_short"
