"""Each public method of the tinker SDK's ServiceClient that the tests of its clients don't call, and who may call."""

import asyncio
import logging

import pytest
import tinker
from tinker_service import TINY, connect, new_run, rest_client, state

from tandem.cluster.config import TandemConfig
from tandem.serve.keys import create_key
from tandem.serve.store.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_a_session_starts_and_closes_without_a_complaint(service, caplog):
    caplog.set_level(logging.WARNING)
    with connect(service) as client:
        session_id = client.holder.get_session_id()
        assert session_id in client.get_console_url()
        models = client.get_server_capabilities().supported_models
        assert TINY in [model.model_name for model in models]
        assert asyncio.run(client.get_server_capabilities_async()).supported_models == models
        assert client.create_rest_client().get_session(session_id).result().training_run_ids == []
        telemetry = client.get_telemetry()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tinker")]
    assert [text for text in said if "train_unembed" not in text] == []
    assert len(said) == 1  # about the output layer, and nothing else
    assert telemetry is client.get_telemetry()
    with pytest.raises(RuntimeError, match="closed"):
        client.create_lora_training_client(TINY)


def test_runs_outlive_the_session_that_made_them(service, sdk):
    other = connect(service)
    client = asyncio.run(other.create_lora_training_client_async(TINY, rank=4, seed=1, train_mlp=False))
    path = client.save_state("last").result().path
    weights = state(client)
    other.close("success", detail="done").result()
    assert state(sdk.create_training_client_from_state(path).result()) == pytest.approx(weights, abs=1e-4)


def test_a_seed_makes_the_same_run(sdk):
    first, second = new_run(sdk, seed=5, rank=4), new_run(sdk, seed=5, rank=4)
    assert first.model_id != second.model_id
    digests = [client.save_state("start").result().path for client in (first, second)]
    assert len(set(digests)) == 2


def test_keys_have_their_roles_and_their_entity(service, sdk):
    run = new_run(sdk, rank=4)
    path = run.save_state("private").result().path
    store = Store(TandemConfig(home=service.home).resolved_store_url)
    stranger = create_key(store, name="stranger", entity="strangers")
    infer = create_key(store, name="infer", entity="default", role="infer")
    with tinker.ServiceClient(base_url=service.url, api_key=f"tml-{stranger}") as other:
        with pytest.raises(tinker.TinkerError):
            other.create_training_client_from_state(path).result(timeout=60)
        with pytest.raises(tinker.TinkerError):
            other.create_sampling_client(model_path=path).result(timeout=60)
    with tinker.ServiceClient(base_url=service.url, api_key=f"tml-{infer}") as sampling:
        sampling.create_sampling_client(base_model=TINY).result(timeout=60)
        with pytest.raises(tinker.PermissionDeniedError):
            sampling.create_lora_training_client(TINY, rank=4).result(timeout=60)
    with pytest.raises(tinker.TinkerError):
        tinker.ServiceClient(base_url=service.url, api_key="tml-tdm_nobody").holder.get_session_id()
    assert rest_client(service).get_training_run(run.model_id).result().training_run_id == run.model_id
