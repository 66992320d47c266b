"""The KL reference of a job is the version that the options name. Its files are kept until the job ends."""

import uuid

import pytest

from tandem.cluster.jobs.job import PolicyVersion
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import ConfigError
from tandem.serve.errors import UnavailableError
from tandem.serve.jobs.references import kl_reference

ZERO = "0" * 64
ROOT = "/srv/artifacts"


@pytest.fixture
def train(store, add_job, claim, clock):
    """Make the next versions of a model, with a reward spread for each."""

    def train(model, *digests, spread=0.25):
        for digest in digests:
            add_job(model)
            claimed = claim()
            store.claims.complete(
                claimed, PolicyVersion(model.id, claimed.next_step, digest), {"reward_std_dev": spread}
            )
            clock.advance(1)

    return train


@pytest.fixture
def post(store, clock):
    """Accept a job with a KL penalty."""

    def post(model, **options):
        config = TrainingConfig(kl_penalty_coef=0.1, **options)
        job_id, reference = str(uuid.uuid4()), kl_reference(config, ROOT)
        clock.advance(1)
        return store.jobs.add(
            job_id, model.id, f"payloads/{job_id}", config.model_dump(exclude_none=True), "0" * 64, reference=reference
        )

    return post


def test_no_penalty_no_reference(add_model, add_job, claim):
    add_job(add_model(), config={"kl_penalty_coef": 0.0})
    assert claim().reference_digest is None


def test_the_reference_is_the_one_that_the_options_name(store, add_model, train, post, claim):
    model, other = add_model(), add_model("other")
    train(model, "a", "b" * 64)
    train(other, "c")
    for options, digest in (
        ({}, ZERO),
        ({"kl_penalty_reference_step": 0}, ZERO),
        ({"kl_penalty_reference_step": 1}, "a"),
        ({"kl_ref_adapter_path": "team/project/other:step1"}, "c"),
        ({"kl_ref_adapter_path": "wandb-artifact:///team/project/other:step0"}, ZERO),
        ({"kl_ref_adapter_path": f"checkpoints/{'b' * 64}"}, "b" * 64),
        ({"kl_ref_adapter_path": f"{ROOT}/checkpoints/{ZERO}"}, ZERO),
        ({"kl_ref_adapter_path": "team/project/other:step1", "kl_penalty_reference_step": 9}, "c"),
    ):
        post(model, **options)
        claimed = claim()
        assert claimed.reference_digest == digest, options
        store.claims.fail(claimed, "enough")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"kl_penalty_reference_step": 1}, "team/project/agent:step1; it was deleted"),
        ({"kl_penalty_reference_step": 3}, "step3; that step hasn't been trained yet"),
        ({"kl_penalty_step_lag": 1}, "version 1 of team/project/agent, 1 before the current one, was deleted"),
        ({"kl_ref_adapter_path": "team/project/none:step1"}, "no model team/project/none"),
        ({"kl_ref_adapter_path": "others/project/agent:step1"}, "entity 'team' has no model others/project/agent"),
        ({"kl_ref_adapter_path": "team/project/elsewhere:step0"}, "on base model another/base"),
        ({"kl_ref_adapter_path": "team/project/agent"}, "is neither"),
        ({"kl_ref_adapter_path": "/etc/passwd"}, "is neither"),
        ({"kl_ref_adapter_path": f"/elsewhere/checkpoints/{ZERO}"}, "is neither"),
        ({"kl_ref_adapter_path": "checkpoints/../../etc"}, "is neither"),
        ({"kl_ref_adapter_path": f"checkpoints/{'d' * 64}"}, "no version of entity 'team'"),  # another entity's
        ({"kl_ref_adapter_path": f"checkpoints/{'a' * 64}"}, "no version of entity 'team'"),  # deleted
    ],
)
def test_a_reference_that_can_not_be_is_refused_at_its_option(store, add_model, train, post, options, reason):
    model = add_model()
    train(model, "a" * 64, "b")
    store.versions.delete(model.id, "team", [1])
    train(add_model(entity="others"), "d" * 64)
    add_model("elsewhere", base_model="another/base")
    with pytest.raises(ConfigError, match=reason) as caught:
        post(model, **options)
    [option] = options
    assert caught.value.field == option
    assert store.jobs.page("team", 10, state="queued") == []


def test_a_base_model_without_version_0_is_starting(add_model, post):
    with pytest.raises(UnavailableError):
        post(add_model("early", base_model="another/base"))


@pytest.mark.parametrize(("lag", "digest"), [(1, "b"), (2, "a"), (3, ZERO), (9, ZERO)])
def test_a_lag_counts_from_the_version_before_the_job(store, add_model, train, post, claim, lag, digest):
    model = add_model()
    train(model, "a", "b", "c")
    post(model, kl_penalty_step_lag=lag)
    assert claim().reference_digest == digest


def test_a_lag_counts_from_what_the_jobs_ahead_made(store, add_model, train, add_job, post, claim):
    model = add_model()
    train(model, "a")
    add_job(model)
    post(model, kl_penalty_step_lag=1)
    store.claims.complete(claim(), PolicyVersion(model.id, 2, "b"), {})
    assert claim().reference_digest == "a"


def test_files_of_a_pinned_reference_stay_until_the_job_ends(store, add_model, train, post, claim):
    model, other = add_model(), add_model("other")
    train(other, "reference")
    job = post(model, kl_ref_adapter_path="team/project/other:step1")
    store.models.delete(other.id, "team")
    assert store.garbage.unused_digests() == []
    claimed = claim()
    assert (claimed.id, claimed.reference_digest) == (job.id, "reference")
    assert store.garbage.unused_digests() == []
    store.claims.fail(claimed, "enough")
    assert store.garbage.unused_digests() == ["reference"]


def test_files_that_a_lag_may_need_stay_until_the_job_ends(store, clock, add_model, train, add_job, post, claim):
    model, twin = add_model(), add_model("twin")
    train(model, "early", "a", "b")
    train(twin, "a")
    store.versions.delete(model.id, "team", [1])
    add_job(model)
    post(model, kl_penalty_step_lag=2)
    clock.advance(1)
    store.versions.delete(model.id, "team", [2])
    store.versions.delete(twin.id, "team", [1])
    assert store.garbage.unused_digests() == ["early"], "version 1 was deleted before the job was posted"
    ahead = claim()
    store.claims.complete(ahead, PolicyVersion(model.id, 4, "c"), {})
    claimed = claim()
    assert (claimed.version.step, claimed.reference_digest) == (4, "a")
    store.claims.requeue(claimed, "A learner died.")
    again = claim()
    assert again.reference_digest == "a", "every attempt has the same reference"
    assert store.garbage.unused_digests() == ["early"]
    store.claims.fail(again, "enough")
    assert sorted(store.garbage.unused_digests()) == ["a", "early"]


def test_a_lag_to_a_version_deleted_before_fails_the_job_with_the_reason(
    store, clock, add_model, train, add_job, post, claim
):
    model = add_model()
    train(model, "a", "b")
    store.versions.delete(model.id, "team", [2])
    add_job(model)
    job, following = post(model, kl_penalty_step_lag=1), add_job(model)
    store.claims.complete(claim(), PolicyVersion(model.id, 3, "c"), {})
    assert claim() is None
    assert store.jobs.get(job.id, "team").state == "failed"
    [event] = store.jobs.events(job.id, "team", 10)
    assert "kl_penalty_step_lag: version 2 of team/project/agent" in event.data["error_message"]
    assert claim().id == following.id


def test_a_claim_knows_the_reward_spread_of_earlier_jobs(store, add_model, train, add_job, claim):
    model, other = add_model(), add_model("other")
    train(model, "a", spread=0.5)
    train(other, "x", spread=0.9)
    add_job(model)
    store.claims.fail(claim(), "enough")
    train(model, "b", spread=0.25)
    store.versions.delete(model.id, "team", [1])
    store.garbage.forget_digest("a")
    add_job(model)
    assert claim().reward_std_devs == (0.5, 0.25), "deleted versions count, too"
