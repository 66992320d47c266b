"""The SDK's RestClient against the real application over SQLite."""

import pytest
import tinker
from run_data import BASE


def test_runs_and_models_are_listed_together(rest, data, job_model):
    run = data.run(user_metadata={"purpose": "test"})
    path = data.save(run, "first")
    sampler = data.save(run, "shown", "save_for_sampler")
    data.run("others")
    found = rest.list_training_runs().result()
    assert [one.training_run_id for one in found.training_runs] == [run.id, job_model.id]
    assert found.cursor.total_count == 2
    own, of_jobs = found.training_runs
    assert (own.base_model, own.lora_rank, own.model_owner) == (BASE, 4, "team")
    assert own.last_checkpoint.tinker_path == path and own.last_sampler_checkpoint.tinker_path == sampler
    assert own.user_metadata == {"purpose": "test"}
    assert of_jobs.last_checkpoint.tinker_path == f"tinker://{job_model.id}/weights/step2"
    assert rest.list_training_runs(limit=1, offset=1).result().training_runs == [of_jobs]
    assert rest.list_training_runs(project_id="project").result().training_runs == [of_jobs]
    assert rest.get_training_run(run.id).result() == own
    assert rest.get_training_run(run.model_id).result() == own
    assert rest.get_training_run_by_tinker_path(path).result() == own


def test_checkpoints_of_a_run_and_of_all(rest, data, job_model, clock):
    clock.advance(1)
    run = data.run()
    data.save(run, "a", user_metadata={"step": "1"})
    clock.advance(1)
    data.save(run, "b", "save_for_sampler", ttl_s=7200)
    own = rest.list_checkpoints(run.id).result().checkpoints
    assert [(one.checkpoint_id, one.checkpoint_type) for one in own] == [
        ("sampler_weights/b", "sampler"),
        ("weights/a", "training"),
    ]
    assert own[1].size_bytes == 1234 and own[1].user_metadata == {"step": "1"} and not own[1].public
    assert (own[0].expires_at - own[0].time).total_seconds() == 7200 and own[1].expires_at is None
    of_jobs = rest.list_checkpoints(job_model.id).result().checkpoints
    assert {one.checkpoint_id for one in of_jobs} == {
        f"{kind}/step{step}" for kind in ("weights", "sampler_weights") for step in (1, 2)
    }
    everything = rest.list_user_checkpoints().result()
    assert everything.cursor.total_count == 6 and everything.checkpoints[:2] == own
    assert rest.list_user_checkpoints(limit=2, offset=1).result().checkpoints == everything.checkpoints[1:3]


def test_versions_without_a_name_are_not_listed(rest, data):
    run = data.run()
    data.call(run, "save_for_sampler", sampler_seq=0)
    data.answer_all()
    assert rest.list_checkpoints(run.id).result().checkpoints == []


def test_weights_info_of_a_checkpoint_and_of_a_version(rest, data, job_model):
    info = rest.get_weights_info_by_tinker_path(data.save(data.run(), "a")).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == (BASE, True, 4)
    assert (info.train_mlp, info.train_attn, info.train_unembed) == (True, True, False)
    of_jobs = rest.get_weights_info_by_tinker_path(f"tinker://{job_model.id}/weights/step1").result()
    assert of_jobs.lora_rank == 8


def test_a_deleted_checkpoint_is_gone(rest, data):
    run = data.run()
    path = data.save(run, "a", "save_for_sampler")
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(run.id).result().checkpoints == []
    for call in (rest.delete_checkpoint_from_tinker_path, rest.get_weights_info_by_tinker_path):
        with pytest.raises(tinker.NotFoundError, match="deleted or has expired"):
            call(path).result()


def test_a_ttl_ends_a_checkpoint_and_none_keeps_it(rest, data, clock):
    path = data.save(data.run(), "a")
    rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    clock.advance(3599)
    rest.get_weights_info_by_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    clock.advance(10**6)
    rest.get_weights_info_by_tinker_path(path).result()
    rest.set_checkpoint_ttl_from_tinker_path(path, 3600).result()
    clock.advance(3601)
    with pytest.raises(tinker.NotFoundError):
        rest.get_weights_info_by_tinker_path(path).result()
    with pytest.raises(tinker.APIStatusError, match="ttl_seconds"):
        rest.set_checkpoint_ttl_from_tinker_path(path, 3599).result()


def test_other_entities_see_a_published_checkpoint_and_no_other(rest, client_of, data):
    others = client_of("others")
    run = data.run()
    path = data.save(run, "a")
    for call in (
        lambda: others.get_training_run(run.id),
        lambda: others.list_checkpoints(run.id),
        lambda: others.get_weights_info_by_tinker_path(path),
        lambda: others.delete_checkpoint_from_tinker_path(path),
        lambda: others.publish_checkpoint_from_tinker_path(path),
        lambda: others.set_checkpoint_ttl_from_tinker_path(path, None),
        lambda: others.get_session(run.session_id),
    ):
        with pytest.raises(tinker.NotFoundError):
            call().result()
    assert others.list_user_checkpoints().result().checkpoints == []
    for _ in range(2):
        rest.publish_checkpoint_from_tinker_path(path).result()
    assert rest.list_checkpoints(run.id).result().checkpoints[0].public
    assert others.get_weights_info_by_tinker_path(path).result().lora_rank == 4
    assert others.list_user_checkpoints().result().checkpoints == []
    with pytest.raises(tinker.NotFoundError):
        others.delete_checkpoint_from_tinker_path(path).result()
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    with pytest.raises(tinker.NotFoundError):
        others.get_weights_info_by_tinker_path(path).result()


def test_an_infer_key_reads_and_changes_nothing(client_of, data):
    infer = client_of(role="infer")
    path = data.save(data.run(), "a")
    assert infer.list_user_checkpoints().result().checkpoints
    with pytest.raises(tinker.PermissionDeniedError, match="role train"):
        infer.delete_checkpoint_from_tinker_path(path).result()


def test_versions_of_jobs_are_not_changed_here(rest, job_model):
    for call in (
        rest.delete_checkpoint_from_tinker_path,
        rest.publish_checkpoint_from_tinker_path,
        lambda path: rest.set_checkpoint_ttl_from_tinker_path(path, 3600),
    ):
        with pytest.raises(tinker.BadRequestError, match="/v1/preview/models"):
            call(f"tinker://{job_model.id}/weights/step1").result()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("tinker://x/weights", "tinker_path"),
        ("tinker://x/other/y", "tinker_path"),
        ("s3://x/weights/y", "tinker_path"),
    ],
)
def test_a_malformed_path_names_its_field(raw, path, place):
    answer = raw.post("/api/v1/weights_info", json={"tinker_path": path})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == place


@pytest.mark.parametrize("checkpoint", ["a", "other/a", "weights/", "weights/a/b"])
def test_a_malformed_checkpoint_id_is_refused(raw, data, checkpoint):
    run = data.run()
    answer = raw.delete(f"/api/v1/training_runs/{run.id}/checkpoints/{checkpoint}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "path.checkpoint_id"


@pytest.mark.parametrize("query", ["limit=-1", "limit=1001", "offset=-1", "limit=x", "access_scope=all"])
@pytest.mark.parametrize("route", ["training_runs", "sessions"])
def test_a_malformed_query_names_its_field(raw, route, query):
    answer = raw.get(f"/api/v1/{route}?{query}")
    assert answer.status_code == 422 and query.partition("=")[0] in answer.json()["error"]["param"]


def test_sessions_with_their_runs_and_samplers(rest, client_of, data):
    run = data.run(user_metadata={"n": 1, "t": "x"})
    data.call(run, "save_for_sampler", sampler_seq=3)
    data.answer_all()
    other = data.run()
    assert rest.list_sessions().result().sessions == [other.session_id, run.session_id]
    assert rest.list_sessions(limit=1, offset=1).result().sessions == [run.session_id]
    found = rest.get_session(run.session_id).result()
    assert found.training_run_ids == [run.id] and found.sampler_ids == [f"{run.session_id}:sample:3"]
    assert found.user_metadata == {"n": "1", "t": "x"}


def test_what_is_not_here_says_what_is(rest, raw, address):
    admin = tinker.AdminClient(base_url=address, api_key=raw.headers["X-API-Key"])
    with pytest.raises(tinker.NotFoundError, match="/v1/preview/usage"):
        admin.get_billing_usage("2026-07-13T00:00:00Z", "2026-07-14T00:00:00Z").result()
    with pytest.raises(tinker.NotFoundError, match="audit log"):
        admin.get_audit_log().result()
    with pytest.raises(tinker.NotFoundError, match="tracing"):
        rest.export_session_trace("x").result()


def test_a_copy_has_a_path_of_its_own_that_stays(rest, client_of, data, job_model):
    source = data.save(data.run(), "a", "save_for_sampler", user_metadata={"k": "v"})
    copy = rest.copy_weights(source, "archive", ttl_seconds=7200).result()
    assert copy.endswith(":train:0/sampler_weights/a") and copy != source
    rest.delete_checkpoint_from_tinker_path(source).result()
    [own] = [one for one in rest.list_user_checkpoints().result().checkpoints if one.tinker_path == copy]
    assert own.user_metadata == {"k": "v"} and own.expires_at is not None
    [run] = rest.list_training_runs(project_id="archive").result().training_runs
    assert copy.startswith(f"tinker://{run.training_run_id}/")
    data.call(data.store.runs.get("team", run.training_run_id), "optim_step")
    assert data.answer_all() == 0  # it takes no calls
    version = rest.copy_weights(f"tinker://{job_model.id}/weights/step1", "archive").result()
    assert version.endswith("/weights/step1")
    with pytest.raises(tinker.NotFoundError):
        client_of("others").copy_weights(copy, "archive").result()


def test_a_published_checkpoint_is_copied_by_another_entity(rest, client_of, data):
    others = client_of("others")
    source = data.save(data.run(), "a")
    rest.publish_checkpoint_from_tinker_path(source).result()
    copy = others.copy_weights(source, "mine").result()
    rest.unpublish_checkpoint_from_tinker_path(source).result()
    assert others.get_weights_info_by_tinker_path(copy).result().lora_rank == 4
    with pytest.raises(tinker.NotFoundError):
        others.get_weights_info_by_tinker_path(source).result()


def test_a_repeated_copy_is_made_once(raw, data):
    source = data.save(data.run(), "a")
    body = {"source_path": source, "destination_project_id": "archive"}
    answers = [raw.post("/api/v1/copy_weights", json=body, headers={"X-Idempotency-Key": "k"}) for _ in range(2)]
    assert answers[0].json() == answers[1].json()
    both = raw.post("/api/v1/copy_weights", json=body | {"session_id": "x", "model_seq_id": 0})
    assert both.status_code == 400 and both.json()["error"]["param"] == "destination_project_id"


@pytest.mark.filterwarnings("ignore:RestClient.search_sessions")
def test_sessions_are_found_by_name_metadata_and_status(rest, client_of, data, clock):
    sessions = data.store.sessions
    nightly = sessions.create("team", None, display_name="Nightly run A", user_metadata={"k": "v"}, project="p")
    clock.advance(1)
    other = sessions.create("team", None, display_name="Daily")
    sessions.finish("team", other.id, "errored", "why")
    sessions.create("others", None, display_name="Nightly run B")

    def found(**query):
        answer = rest.search_sessions(tinker.types.SessionSearchRequest(**query)).result()
        return [one.session_id for one in answer.sessions]

    assert found() == [other.id, nightly.id]
    assert found(display_name="run night") == [nightly.id] and found(display_name="run daily") == []
    assert found(session_id=other.id, display_name="nightly") == [other.id, nightly.id]
    assert found(user_metadata={"k": "v"}) == [nightly.id] and found(user_metadata={"k": "w"}) == []
    assert found(project_ids=["p"]) == [nightly.id]
    assert found(statuses=[{"type": "active"}]) == [nightly.id]
    assert found(statuses=[{"type": "client_finished", "reasons": ["errored"]}]) == [other.id]
    assert found(statuses=[{"type": "client_finished", "reasons": ["success"]}, {"type": "failed"}]) == []
    assert found(owner={"type": "user", "owner_urns": ["others"]}) == []
    first = rest.search_sessions(tinker.types.SessionSearchRequest(limit=1)).result()
    assert first.sessions[0].status.detail == "why" and first.sessions[0].owner == "team"
    assert found(limit=1, cursor=first.next_cursor) == [nightly.id]
