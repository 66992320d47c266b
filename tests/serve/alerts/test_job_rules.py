"""What the rules about jobs and models find in a store, and when it is over."""

import pytest

from tandem.cluster.calls.call import Anchor, CallResult, SavedState
from tandem.cluster.config import AlertRulesConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.alerts.job_rules import JobRules
from tandem.serve.tinker.store.saves import save_options
from tandem.serve.tinker.store.store import TinkerStore

RULES = AlertRulesConfig(stuck_job_s=600, stalled_queue_s=300, failed_jobs=2, reward_window=2, reward_noise=0)


@pytest.fixture
def rules(store):
    return JobRules(store.database, RULES)


def kinds(rules, *open_models):
    return sorted(finding.kind for finding in rules.find(open_models))


def make_version(store, claim, add_job, model, reward, **events):
    add_job(model)
    job = claim()
    for event, data in events.items():
        store.claims.record_event(job, event, data)
    digest = f"{job.next_step:064x}"
    store.claims.complete(job, PolicyVersion(model.id, job.next_step, digest), {"reward": reward})
    return job


def test_a_running_job_without_events_is_stuck(rules, store, clock, add_model, add_job, claim):
    model = add_model()
    add_job(model)
    job = claim(lease_s=10_000)
    clock.advance(600)
    assert kinds(rules) == []
    clock.advance(1)
    [found] = rules.find()
    assert (found.kind, found.subject, found.entity) == ("stuck_job", job.id, "team")
    assert found.links == {"model_id": model.id, "model": model.path, "job_id": job.id}
    store.claims.record_event(job, "training_started", {})
    assert kinds(rules) == []
    clock.advance(601)
    assert kinds(rules) == ["stuck_job"]
    store.claims.report_waiting(job, "2 GPUs")  # which another rule is about
    assert kinds(rules) == []


def test_a_new_attempt_is_progress(rules, clock, add_model, add_job, claim):
    add_job(add_model())
    claim(lease_s=1)
    clock.advance(700)
    claim(lease_s=10_000)
    assert kinds(rules) == []


def test_a_queue_on_which_nobody_works_is_stalled(rules, clock, add_model, add_job, claim):
    first, other = add_model(), add_model("other")
    job = add_job(first)
    add_job(other)
    clock.advance(301)
    [found] = rules.find()
    assert (found.kind, found.subject, found.links["job_id"]) == ("stalled_queue", "tandem/tiny", job.id)
    assert "1 more" in found.cause
    claim(lease_s=10_000)
    assert kinds(rules) == []


def test_failed_jobs_in_a_row(rules, store, add_model, add_job, claim):
    model = add_model()

    def fail(reason="no memory"):
        add_job(model)
        store.claims.fail(claim(), reason)

    fail()
    assert kinds(rules) == []
    make_version(store, claim, add_job, model, 1.0)
    fail()
    assert kinds(rules) == []
    fail("diverged")
    [found] = rules.find()
    assert (found.kind, found.subject) == ("failed_jobs", model.id) and "diverged" in found.cause
    add_job(model)
    cancelled = claim()
    store.jobs.request_cancel(cancelled.id, "team")
    store.claims.cancel(cancelled)
    assert kinds(rules) == ["failed_jobs"], "a cancelled job says nothing"
    make_version(store, claim, add_job, model, 1.0)
    assert kinds(rules) == []


def test_a_disagreement_of_the_last_job_is_found_until_a_job_agrees(rules, store, add_model, add_job, claim):
    model = add_model()
    make_version(store, claim, add_job, model, 1.0, engine_disagrees={"reason": "by 0.5 nats", "step": 1})
    [found] = rules.find()
    assert (found.kind, found.subject, found.links["step"]) == ("logprob_mismatch", model.id, 1)
    assert found.cause == "by 0.5 nats" and found.severity == "critical"
    make_version(store, claim, add_job, model, 1.0, logprobs_rescored={"num_tokens": 7, "tolerance": 0.1})
    [found] = rules.find()
    assert found.severity == "warning" and "7 tokens" in found.cause
    make_version(store, claim, add_job, model, 1.0)
    assert kinds(rules) == []


def test_a_disagreement_about_the_last_save_of_a_client_is_found_until_it_saves_again(rules, store):
    tinker = TinkerStore(store.database)
    session = tinker.sessions.create("team", "key")
    run = tinker.runs.create("team", "key", session.id, 0, "tandem/tiny", None, None, {})

    def save(seq, warning=None):
        tinker.calls.submit("team", run.id, seq, "save_for_sampler", f"{seq}" * 64, None, save_options(None), 0)
        claim = tinker.claims.claim_run("tandem/tiny", "coordinator", 30)
        saved = SavedState(f"{seq:064x}", 100, True, True, warning)
        [call] = tinker.claims.next_calls(claim)
        tinker.claims.answer(claim, call, CallResult(saved=saved, anchor=Anchor(saved.digest, seq, True)))
        tinker.claims.release(claim)

    save(1)
    assert kinds(rules) == []
    save(2, "The engine doesn't apply version 2.")
    [found] = rules.find()
    assert (found.kind, found.subject, found.links["step"]) == ("logprob_mismatch", run.model_id, 2)
    assert (found.severity, found.cause) == ("critical", "The engine doesn't apply version 2.")
    save(3)
    assert kinds(rules) == []


def test_a_collapse_of_the_reward_names_the_versions(rules, store, add_model, add_job, claim):
    good, model = add_model("good"), add_model()
    for reward in (0.8, 0.8, 0.8, 0.8):
        make_version(store, claim, add_job, good, reward)
    for reward in (0.2, 0.8, 0.8, 0.1):
        make_version(store, claim, add_job, model, reward)
    assert kinds(rules) == []
    make_version(store, claim, add_job, model, 0.1)
    [found] = rules.find()
    assert (found.kind, found.subject) == ("reward_collapse", model.id)
    assert (found.links["best_step"], found.links["step"]) == (3, 5)
    assert kinds(rules) == ["reward_collapse"], "it stays while there is no new version"
    for reward in (0.8, 0.8):
        make_version(store, claim, add_job, model, reward)
    assert kinds(rules) == []


def test_what_concerned_a_deleted_model_is_over(rules, store, add_model, add_job, claim):
    model = add_model()
    for reward in (0.8, 0.8, 0.1, 0.1):
        make_version(store, claim, add_job, model, reward, engine_disagrees={"reason": "x"})
    assert kinds(rules) == ["logprob_mismatch", "reward_collapse"]
    store.models.delete(model.id, "team")
    assert kinds(rules, model.id) == []
