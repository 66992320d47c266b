"""Fine-tuning jobs as the API accepts them, with the unmodified SDK of OpenAI."""

import openai
import pytest
from fine_tuning_data import EXACT, TASK

from tandem.serve.keys import create_key

BASE = "tandem/tiny"
REINFORCEMENT = {"type": "reinforcement", "reinforcement": {"grader": EXACT}}


@pytest.fixture
def create(client, upload):
    def create(**options):
        options.setdefault("model", BASE)
        return client.fine_tuning.jobs.create(
            training_file=options.pop("training_file", None) or upload().id, **options
        )

    return create


def refused(call, **options):
    with pytest.raises(openai.BadRequestError) as error:
        call(**options)
    assert error.value.type == "invalid_request_error"
    return error.value.param


def test_a_job_is_returned_as_the_sdk_reads_it(client, create, upload):
    file = upload()
    job = create(training_file=file.id, seed=7, suffix="my model", metadata={"run": "a"})
    assert job.id.startswith("ftjob-") and job.object == "fine_tuning.job" and job.organization_id == "team"
    assert (job.model, job.training_file, job.validation_file, job.seed) == (BASE, file.id, None, 7)
    assert (job.status, job.error, job.fine_tuned_model, job.finished_at) == ("validating_files", None, None, None)
    assert (job.metadata, job.result_files, job.trained_tokens) == ({"run": "a"}, [], None)
    assert job.method.type == "supervised" and job.method.supervised.hyperparameters.n_epochs == "auto"
    assert job.hyperparameters.batch_size == "auto"
    assert client.fine_tuning.jobs.retrieve(job.id) == job
    assert create(seed=None).seed != create().seed


def test_old_hyperparameters_are_those_of_the_supervised_method(create):
    job = create(hyperparameters={"n_epochs": 2, "batch_size": 3, "learning_rate_multiplier": 0.5})
    assert job.method.supervised.hyperparameters.model_dump() == {
        "n_epochs": 2,
        "batch_size": 3,
        "learning_rate_multiplier": 0.5,
    }
    assert job.hyperparameters.n_epochs == 2


def test_each_method_with_its_settings(create):
    dpo = create(method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "batch_size": 2}}})
    assert (dpo.method.type, dpo.method.dpo.hyperparameters.beta) == ("dpo", 0.2)
    rft = create(method=REINFORCEMENT)
    assert rft.method.reinforcement.grader.operation == "eq"
    assert rft.method.reinforcement.hyperparameters.compute_multiplier == "auto"


def test_what_is_not_supported_is_refused_by_field(create, upload):
    supervised = "method.supervised.hyperparameters"
    assert refused(create, model="gpt-4o-mini") == "model"
    assert refused(create, model="others/project/name") == "model"
    assert refused(create, model="team/project/unknown") == "model"
    assert refused(create, training_file="file-unknown") == "training_file"
    assert refused(create, validation_file="file-unknown") == "validation_file"
    assert refused(create, integrations=[{"type": "wandb", "wandb": {"project": "p"}}]) == "integrations"
    assert refused(create, suffix="x" * 65) == "suffix"
    assert refused(create, seed=-1) == "seed"
    assert refused(create, extra_body={"n_epochs": 1}) == "n_epochs"
    assert refused(create, metadata={str(i): "" for i in range(17)}) == "metadata"
    assert refused(create, method={"type": "other"}) == "method.type"
    for name, value in (("n_epochs", 0), ("batch_size", "many"), ("learning_rate_multiplier", -1)):
        method = {"type": "supervised", "supervised": {"hyperparameters": {name: value}}}
        assert refused(create, method=method) == f"{supervised}.{name}"
    assert refused(create, method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0}}}).endswith("beta")
    assert refused(create, method={"type": "dpo", "supervised": {}}) == "method"
    assert refused(create, method={"type": "supervised"}, hyperparameters={"n_epochs": 1}) == "hyperparameters"


@pytest.mark.parametrize("method", ["supervised", "dpo"])
def test_validation_files_belong_to_the_reinforcement_method(create, upload, method):
    assert refused(create, method={"type": method}, validation_file=upload().id) == "validation_file"
    create(method=REINFORCEMENT, validation_file=upload([TASK]).id)


def test_reinforcement_is_refused_by_field(create):
    def with_grader(grader, **hyperparameters):
        settings = {"grader": grader, **({"hyperparameters": hyperparameters} if hyperparameters else {})}
        return refused(create, method={"type": "reinforcement", "reinforcement": settings})

    grader, numbers = "method.reinforcement.grader", "method.reinforcement.hyperparameters"
    assert refused(create, method={"type": "reinforcement"}) == "method"
    assert with_grader({**EXACT, "operation": "near"}) == f"{grader}.operation"
    assert with_grader({**EXACT, "type": "other"}) == f"{grader}.type"
    similar = {**EXACT, "type": "text_similarity", "evaluation_metric": "cosine"}
    del similar["operation"]
    assert with_grader(similar) == f"{grader}.evaluation_metric"
    multi = {"type": "multi", "name": "m", "graders": {"a": {**EXACT, "input": "{{x}}"}}, "calculate_output": "a"}
    assert with_grader(multi) == f"{grader}.graders.a.input"
    assert with_grader({"type": "python", "name": "p", "source": "def grade(s, i): return 1"}) == f"{grader}.type"
    judge = {"type": "score_model", "name": "j", "model": "gpt-4o", "input": [{"role": "user", "content": "x"}]}
    assert with_grader(judge) == f"{grader}.model"
    assert with_grader(EXACT, reasoning_effort="high") == f"{numbers}.reasoning_effort"
    assert with_grader(EXACT, eval_interval=5) == f"{numbers}.eval_interval"
    assert with_grader(EXACT, eval_samples=5) == f"{numbers}.eval_samples"


def test_python_graders_need_the_operators_consent(create, app, services):
    from dataclasses import replace

    from tandem.cluster.config import ProjectConfig

    method = {
        "type": "reinforcement",
        "reinforcement": {"grader": {"type": "python", "name": "p", "source": "def grade(s, i): return 1"}},
    }
    config = services.config.model_copy(update={"projects": {"team": ProjectConfig(run_code=True)}})
    app.state.services = replace(services, config=config)
    assert create(method=method).method.reinforcement.grader.type == "python"


def test_lists_are_paged_and_filtered_by_metadata(client, create, upload):
    file = upload().id
    ids = [create(training_file=file, metadata={"n": str(i % 2), "k": "v"}).id for i in range(5)]
    plain = create(training_file=file).id
    jobs = client.fine_tuning.jobs
    assert [job.id for job in jobs.list(limit=2)] == [plain, *ids[::-1]]
    assert [job.id for job in jobs.list(metadata={"n": "1"}, limit=1)] == [ids[3], ids[1]]
    assert [job.id for job in jobs.list(metadata={"n": "0", "k": "other"})] == []
    assert [job.id for job in jobs.list(extra_query={"metadata": "null"})] == [plain]
    page = jobs.list(limit=2, after=ids[4])
    assert [job.id for job in page.data] == [ids[3], ids[2]] and page.has_more


def test_events_are_paged_the_newest_first(client, create):
    job = create()
    events = client.fine_tuning.jobs.list_events(job.id).data
    assert [event.message for event in events] == [
        f"Validating training file: {job.training_file}",
        f"Created fine-tuning job: {job.id}",
    ]
    assert {(event.object, event.level, event.type) for event in events} == {
        ("fine_tuning.job.event", "info", "message")
    }
    assert list(client.fine_tuning.jobs.list_events(job.id, limit=1)) == events
    with pytest.raises(openai.UnprocessableEntityError):
        client.fine_tuning.jobs.list_events(job.id, after="ftevent-0-1")
    assert client.fine_tuning.jobs.checkpoints.list(job.id).data == []


def test_a_job_that_has_not_begun_is_cancelled_at_once(client, create):
    job = create()
    cancelled = client.fine_tuning.jobs.cancel(job.id)
    assert cancelled.status == "cancelled" and cancelled.finished_at
    assert client.fine_tuning.jobs.cancel(job.id) == cancelled
    assert "cancelled" in client.fine_tuning.jobs.list_events(job.id).data[0].message


def test_jobs_cannot_be_paused(client, create):
    job = create()
    for call in (client.fine_tuning.jobs.pause, client.fine_tuning.jobs.resume):
        with pytest.raises(openai.BadRequestError, match="Cancel the job") as error:
            call(job.id)
        assert error.value.code == "not_available"


def test_jobs_of_other_entities_do_not_exist(client, create, store, base_url):
    job = create()
    with openai.OpenAI(base_url=base_url, api_key=create_key(store, "k", "others"), max_retries=0) as other:
        jobs = other.fine_tuning.jobs
        assert jobs.list().data == []
        for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list, jobs.pause, jobs.resume):
            with pytest.raises(openai.NotFoundError) as error:
                call(job.id)
            assert error.value.param == "fine_tuning_job_id"


def test_a_repeat_with_the_same_key_returns_the_same_job(client, upload):
    options = {"model": BASE, "training_file": upload().id, "extra_headers": {"Idempotency-Key": "k1"}}
    first = client.fine_tuning.jobs.create(**options)
    assert client.fine_tuning.jobs.create(**options) == first
    with pytest.raises(openai.ConflictError):
        client.fine_tuning.jobs.create(**options, seed=1)


def test_the_queue_has_a_limit(create, configure):
    configure("limits", max_open_jobs_per_project=1)
    create()
    with pytest.raises(openai.RateLimitError, match="max_open_jobs_per_project"):
        create()


def test_a_deleted_file_stays_while_an_open_job_needs_it(client, create, upload, blobs):
    file = upload()
    job = create(training_file=file.id)
    client.files.delete(file.id)
    assert blobs() == [f"files/{file.id}.jsonl"]
    client.fine_tuning.jobs.cancel(job.id)
    assert blobs() == []


def test_a_model_of_the_entity_is_a_start(client, create, add_model):
    add_model("agent")
    for name in ("team/project/agent", "team/project/agent:step0"):
        assert create(model=name).model == name
    assert refused(create, model="team/project/agent:step3") == "model"


def test_permissions_are_refused_with_a_sentence(client):
    permissions = client.fine_tuning.checkpoints.permissions
    with pytest.raises(openai.BadRequestError, match="entity"):
        permissions.create("team/fine-tuning/x:step1", project_ids=["p"])
