"""Each public method of the tinker SDK's RestClient, on the whole service."""

import asyncio
import io
import warnings

import httpx
import pytest
import safetensors.torch
import tinker
from tinker import types
from tinker_service import TINY, connect, new_run, prompt, random_tokens, rest_client, step

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::tinker.ExperimentalWarning")


@pytest.fixture(scope="module")
def rest(service):
    return rest_client(service)


@pytest.fixture(scope="module")
def run(sdk):
    """A run with a checkpoint of each kind."""
    client = new_run(sdk, rank=4, user_metadata={"purpose": "rest"})
    step(client)
    return client


@pytest.fixture(scope="module")
def paths(run):
    return {
        "weights": run.save_state("state", user_metadata={"step": "1"}).result().path,
        "sampler_weights": run.save_weights_for_sampler("sampler").result().path,
        "external_weights": run.save_weights_external("peft").result().path,
    }


def test_capabilities(rest):
    models = {model.model_name: model for model in rest.get_server_capabilities().result().supported_models}
    assert models[TINY].trainable and models[TINY].sampleable
    assert models[TINY].max_context_length == 1024


def test_training_runs(rest, run, paths):
    found = rest.get_training_run(run.model_id).result()
    assert (found.training_run_id, found.base_model, found.is_lora, found.lora_rank) == (run.model_id, TINY, True, 4)
    assert found.user_metadata == {"purpose": "rest"} and not found.corrupted
    assert found.last_checkpoint.tinker_path == paths["weights"]
    assert found.last_sampler_checkpoint.tinker_path == paths["sampler_weights"]

    def same(other):
        return other.model_dump(exclude={"last_request_time"}) == found.model_dump(exclude={"last_request_time"})

    assert all(same(rest.get_training_run_by_tinker_path(path).result()) for path in paths.values())
    page = rest.list_training_runs(limit=1000).result()
    assert run.model_id in [one.training_run_id for one in page.training_runs]
    assert page.cursor.total_count >= len(page.training_runs)
    assert len(rest.list_training_runs(limit=1).result().training_runs) == 1

    async def asked():
        return (
            await rest.get_training_run_async(run.model_id),
            await rest.get_training_run_by_tinker_path_async(paths["weights"]),
            (await rest.list_training_runs_async(limit=1000)).training_runs,
        )

    one, by_path, listed = asyncio.run(asked())
    assert same(one) and same(by_path) and [one for one in listed if same(one)]
    with pytest.raises(tinker.NotFoundError):
        rest.get_training_run("nothing:train:0").result(timeout=60)


def test_checkpoints(rest, run, paths):
    listed = {one.tinker_path: one for one in rest.list_checkpoints(run.model_id).result().checkpoints}
    assert set(paths.values()) <= listed.keys()
    kinds = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
    for kind, path in paths.items():
        assert listed[path].checkpoint_type == kinds[kind]
        assert listed[path].checkpoint_id == path.removeprefix(f"tinker://{run.model_id}/")
        assert listed[path].size_bytes > 0 and not listed[path].public and listed[path].expires_at is None
    assert listed[paths["weights"]].user_metadata == {"step": "1"}
    mine = rest.list_user_checkpoints(limit=1000).result().checkpoints
    assert set(paths.values()) <= {one.tinker_path for one in mine}

    async def asked():
        of_run = await rest.list_checkpoints_async(run.model_id)
        return of_run.checkpoints, (await rest.list_user_checkpoints_async(limit=1000)).checkpoints

    of_run, of_user = asyncio.run(asked())
    assert {one.tinker_path: one for one in of_run} == listed
    assert [one.tinker_path for one in of_user] == [one.tinker_path for one in mine]


def test_what_weights_are(rest, paths):
    info = rest.get_weights_info_by_tinker_path(paths["weights"]).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (TINY, True, 4)
    assert info.train_attn and not info.train_unembed
    with pytest.raises(tinker.APIStatusError):
        rest.get_weights_info_by_tinker_path("tinker://nothing:train:0/weights/a").result(timeout=60)


def test_downloads(rest, service, paths):
    found = rest.get_external_weights_urls(paths["external_weights"]).result()
    assert asyncio.run(rest.get_external_weights_urls_async(paths["external_weights"])).urls.keys() == found.urls.keys()
    adapter = safetensors.torch.load(httpx.get(found.urls["adapter_model.safetensors"]).raise_for_status().content)
    assert adapter and all(4 in tensor.shape for tensor in adapter.values())
    settings = httpx.get(found.urls["adapter_config.json"]).raise_for_status().json()
    assert settings["r"] == 4
    run_id, checkpoint_id = paths["weights"].removeprefix("tinker://").split("/", 1)
    response = httpx.get(
        f"{service.url}/api/v1/training_runs/{run_id}/checkpoints/{checkpoint_id}/archive",
        headers={"X-API-Key": f"tml-{service.key}"},
        follow_redirects=True,
    )
    assert response.status_code == 200, response.text
    assert _names(response.content) >= {"adapter_config.json", "adapter_model.safetensors"}


def _names(content):
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return {name.rsplit("/", 1)[-1] for name in archive.getnames()}


def test_ttl_and_publishing(rest, run):
    path = run.save_state("kept").result().path

    def shown():
        found = rest.list_checkpoints(run.model_id).result().checkpoints
        return next(one for one in found if one.tinker_path == path)

    rest.set_checkpoint_ttl_from_tinker_path(path, 7200).result()
    assert shown().expires_at is not None
    asyncio.run(rest.set_checkpoint_ttl_from_tinker_path_async(path, None))
    assert shown().expires_at is None
    rest.publish_checkpoint_from_tinker_path(path).result()
    assert shown().public
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not shown().public
    asyncio.run(rest.publish_checkpoint_from_tinker_path_async(path))
    assert shown().public
    asyncio.run(rest.unpublish_checkpoint_from_tinker_path_async(path))
    assert not shown().public


def test_deletion(rest, run):
    names = [run.save_state(f"gone-{index}").result().path for index in range(4)]
    ids = [path.removeprefix(f"tinker://{run.model_id}/") for path in names]
    rest.delete_checkpoint(run.model_id, ids[0]).result()
    rest.delete_checkpoint_from_tinker_path(names[1]).result()
    asyncio.run(rest.delete_checkpoint_async(run.model_id, ids[2]))
    asyncio.run(rest.delete_checkpoint_from_tinker_path_async(names[3]))
    left = {one.tinker_path for one in rest.list_checkpoints(run.model_id).result().checkpoints}
    assert not left & set(names)
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(names[1]).result(timeout=60)


def test_copies(rest, sdk, service, paths):
    """A copy belongs to a run of its own, which can't be trained; a new run continues from it."""
    tokens = random_tokens(1, 12)
    wanted = sdk.create_sampling_client(model_path=paths["weights"]).result().compute_logprobs(prompt(tokens)).result()
    copies = [
        rest.copy_weights(paths["weights"], "archive", ttl_seconds=3600).result(),
        asyncio.run(rest.copy_weights_async(paths["weights"], "archive")),
    ]
    with connect(service, project_id="copies") as other:  # a copy of this client needs a project
        copies.append(other.copy_weights(paths["weights"]).result())
    assert len({*copies, paths["weights"]}) == 4
    for copy in copies:
        sampler = sdk.create_sampling_client(model_path=copy).result()
        assert sampler.compute_logprobs(prompt(tokens)).result() == pytest.approx(wanted, abs=1e-4)
    sdk.create_training_client_from_state_with_optimizer(copies[0]).result()


def test_sessions_and_samplers(rest, service):
    with connect(service, user_metadata={"team": "a"}, display_name="nightly run") as own:
        client = new_run(own, rank=4)
        sampler = client.save_weights_and_get_sampling_client().result()
        session_id = own.holder.get_session_id()
        found = rest.get_session(session_id).result()
        assert found.training_run_ids == [client.model_id]
        assert (found.user_metadata, found.display_name) == ({"team": "a"}, "nightly run")
        [sampler_id] = found.sampler_ids
        assert sampler_id == sampler._sampling_session_id
        assert rest.get_sampler(sampler_id).result().base_model == TINY
        listed = rest.list_sessions(limit=1000).result().sessions
        assert session_id in listed

        async def asked():
            return (
                await rest.get_session_async(session_id),
                await rest.get_sampler_async(sampler_id),
                (await rest.list_sessions_async(limit=1000)).sessions,
            )

        assert asyncio.run(asked()) == (found, rest.get_sampler(sampler_id).result(), listed)
        page = rest.search_sessions(types.SessionSearchRequest(display_name="NIGHTLY")).result()
        assert session_id in [one.session_id for one in page.sessions]
        exact = rest.search_sessions(types.SessionSearchRequest(session_id=session_id)).result()
        assert [one.session_id for one in exact.sessions] == [session_id]
    with pytest.raises(tinker.NotFoundError):
        rest.get_session("nothing").result(timeout=60)


def test_what_this_service_refuses(rest, run):
    """Accounts, bills and consoles of the hosted service. An answer comes at once: the SDK repeats some for minutes."""
    session, day = run.model_id.partition(":")[0], "2026-11-30"
    calls = [
        lambda: rest.assign_session_project(session, "p").result(timeout=60),
        lambda: asyncio.run(rest.assign_session_project_async(session, "p")),
        lambda: rest.export_session_trace(session).result(timeout=60),
        lambda: asyncio.run(rest.export_session_trace_async(session)),
        lambda: rest.get_audit_log().result(timeout=60),
        lambda: asyncio.run(rest.get_audit_log_async()),
        lambda: rest.get_billing_usage(day, day).result(timeout=60),
        lambda: asyncio.run(rest.get_billing_usage_async(day, day)),
        lambda: rest.get_current_checkpoint_storage_usage().result(timeout=60),
        lambda: asyncio.run(rest.get_current_checkpoint_storage_usage_async()),
    ]
    for call in calls:
        with pytest.raises(tinker.APIStatusError) as raised:
            call()
        assert raised.value.status_code in (400, 403, 404, 422), raised.value
        assert raised.value.body, "it says what isn't served"
    with pytest.raises(RuntimeError, match="JWT"):  # read by the SDK from credentials that are no plain key
        rest.whoami().result(timeout=60)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rest.get_telemetry() is None or rest.get_telemetry()
