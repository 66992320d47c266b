"""Models, keys, health, and completions through the OpenAI client."""

import pytest
from serve_fakes import groups

from tandem.client import (
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    SettingsError,
    TandemError,
)
from tandem.serve.keys import create_key

REGISTERED = {"project": "project", "base_model": "tandem/tiny"}


def test_a_model_is_registered_once(client):
    first, again = (client.register_model("agent", **REGISTERED) for _ in range(2))
    assert first == again
    assert (first.name, first.version_name(3), first.step) == ("team/project/agent", "team/project/agent:step3", 0)
    with pytest.raises(ConflictError):
        client.register_model("agent", **REGISTERED, return_existing=False)


def test_models_are_listed_found_and_deleted(client):
    made = [client.register_model(name, **REGISTERED) for name in ("a", "b")]
    assert list(client.models()) == made
    assert list(client.models(newest_first=True)) == made[::-1]
    assert list(client.models(project="project", name="b")) == made[1:]
    assert client.get_model(made[0].id) == made[0]
    client.delete_model(made[0])
    with pytest.raises(NotFoundError) as raised:
        client.get_model(made[0])
    assert isinstance(raised.value, LookupError)


def test_checkpoints_are_deleted(client, agent, end_next_job):
    for _ in range(2):
        client.train(agent, groups())
        end_next_job()
    assert client.delete_checkpoints(agent, [1, 7]) == [7]
    assert [checkpoint.step for checkpoint in client.checkpoints(agent)] == [2]


def test_a_rejection_has_status_code_place_and_sentence(client):
    with pytest.raises(InvalidRequestError) as raised:
        client.register_model("agent", project="project", base_model="none")
    error = raised.value
    assert (error.status, error.code, error.param) == (422, "base_model_not_found", "body.base_model")
    assert "tandem/tiny" in error.message and error.message in str(error)
    assert isinstance(error, ValueError) and isinstance(error, TandemError)


def test_keys_are_created_listed_and_revoked(connect, url, store):
    admin = connect(url, create_key(store, "admin", "team", "admin"))
    made = admin.create_key("rollouts", "infer")
    weak = connect(url, made.key)
    with pytest.raises(ForbiddenError):
        weak.register_model("agent", **REGISTERED)
    admin.revoke_key(made)
    with pytest.raises(AuthenticationError) as raised:
        list(weak.models())
    assert isinstance(raised.value, PermissionError)
    listed = {key.name: key for key in admin.keys()}
    assert listed["rollouts"].revoked_at and listed["rollouts"].key is None


def test_a_degraded_service_is_a_result(client, coordinator):
    assert client.health().status == "ok"
    coordinator["raises"] = ConnectionError("gone")
    health = client.health()
    assert health.status == "degraded" and health.reasons


def test_settings_come_from_the_environment(connect, url, key, monkeypatch):
    monkeypatch.setenv("TANDEM_URL", f"{url}/v1/")
    monkeypatch.setenv("TANDEM_API_KEY", key)
    client = connect()
    assert client.url == url and list(client.models()) == []
    monkeypatch.setenv("TANDEM_API_KEY", "")
    with pytest.raises(SettingsError, match="TANDEM_API_KEY"):
        connect()
    with pytest.raises(SettingsError, match="http"):
        connect("localhost:8000", key)


def test_a_local_service_is_reached_without_the_environment_s_proxy(connect, url, key, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert connect(url, key, retries=0).health().status == "ok"


def test_the_openai_client_samples_and_outlasts_a_lost_answer(client, agent, engine, network):
    message = {"role": "assistant", "content": "17"}
    choice = {"index": 0, "finish_reason": "stop", "message": message, "token_ids": [1, 2]}
    engine.answers({"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
    network.lost = 1
    create = client.openai().chat.completions.create
    made = create(model=agent.name, messages=[{"role": "user", "content": "?"}])
    completion = client.runner.run(made) if hasattr(made, "__await__") else made
    assert completion.choices[0].message.content == "17"
    assert completion.choices[0].model_dump()["token_ids"] == [1, 2]
