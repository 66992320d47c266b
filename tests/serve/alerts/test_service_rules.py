"""What the rules about the service's parts find, once it has lasted."""

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import AlertRulesConfig, DeadlinesConfig, LimitsConfig, TandemConfig
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.alerts.service_rules import EngineState, ServiceRules
from tandem.serve.api.services import EngineFault

BASE = "tandem/tiny"
WELL = {
    "running_jobs": [],
    "running_runs": [],
    "learners_running": True,
    "waiting_for": None,
    "last_error": None,
    "alarm": None,
}


class Probe:
    def __init__(self):
        self.state, self.status = EngineState(None), WELL

    def engines(self):
        if isinstance(self.state, Exception):
            raise self.state
        return {BASE: self.state}

    def coordinator(self):
        if isinstance(self.status, Exception):
            raise self.status
        return {BASE: self.status}


class Timer:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def probe():
    return Probe()


@pytest.fixture
def timer():
    return Timer()


@pytest.fixture
def make(tmp_path, store, probe, timer):
    def make(**rules):
        config = TandemConfig(
            home=tmp_path,
            deadlines=DeadlinesConfig(start_engine_s=500),
            limits=LimitsConfig(min_free_disk_bytes=0),
            alert_rules=AlertRulesConfig(**{"free_disk_bytes": 0, **rules}),
        )
        return ServiceRules(config, store.database, Artifacts(str(tmp_path / "artifacts")), probe, timer)

    return make


def found_after(rules, timer, *seconds):
    """The kinds that are found at each of these times."""
    kinds = []
    for timer.now in seconds:
        kinds.append([finding.kind for finding in rules.find()[0]])
    return kinds


def test_an_engine_has_longer_to_start_than_to_recover(make, probe, timer):
    rules = make(engine_fault_s=60)
    fault = EngineState(EngineFault("its engine has died."))
    probe.state = fault
    assert found_after(rules, timer, 0, 61, 499, 500) == [[], [], [], ["engine_unhealthy"]]
    probe.state = EngineState(None)
    assert found_after(rules, timer, 501) == [[]]
    probe.state = fault
    assert found_after(rules, timer, 510, 569, 570) == [[], [], ["engine_unhealthy"]]
    probe.state = EngineState(EngineFault("1 of 2 engines run.", completions_wait=False))
    [finding] = rules.find()[0]
    assert finding.severity == "warning" and finding.entity is None and finding.links == {"base_model": BASE}


def test_nothing_is_known_about_engines_that_cannot_be_asked(make, probe):
    probe.state = TimeoutError()
    assert make().find() == ([], {"engine_unhealthy", "version_refused"})


def test_a_refused_version_is_an_alert_of_its_models_entity(make, probe, store, add_model, add_job, claim):
    model = add_model()
    add_job(model)
    store.claims.complete(claim(), PolicyVersion(model.id, 1, "a" * 64), {})
    probe.state = EngineState(None, ("a" * 64, "b" * 64))
    [finding] = make().find()[0]
    assert (finding.kind, finding.entity, finding.links["step"]) == ("version_refused", "team", 1)


def test_learners_that_wait_are_an_alert_after_a_while(make, probe, timer):
    rules = make(learners_s=300)
    probe.status = {**WELL, "learners_running": False, "waiting_for": "2 GPUs"}
    assert found_after(rules, timer, 0, 299, 300) == [[], [], ["learners_not_started"]]
    assert "2 GPUs" in rules.find()[0][0].cause
    probe.status = WELL
    assert found_after(rules, timer, 301) == [[]]


def test_a_coordinator_that_fails_or_does_not_answer(make, probe, timer):
    rules = make(coordinator_s=60)
    probe.status = {**WELL, "last_error": "NoAnswerError: the store"}
    assert found_after(rules, timer, 0, 60) == [[], ["coordinator_failed"]]
    probe.status = TimeoutError()
    assert rules.find() == ([], {"coordinator_failed", "learners_not_started"}), "not yet known"
    assert found_after(rules, timer, 120) == [["coordinator_failed"]]


@pytest.mark.parametrize(("is_running", "kind"), [(True, "logprob_mismatch"), (False, "learners_not_started")])
def test_an_alarm_of_the_coordinator_is_an_alert_at_once(make, probe, is_running, kind):
    probe.status = {**WELL, "learners_running": is_running, "alarm": "they disagree."}
    [finding] = make().find()[0]
    assert (finding.kind, finding.cause) == (kind, "they disagree.")


def test_a_disk_with_less_space_than_wanted_is_nearly_full(make):
    assert make().find()[0] == []
    [finding] = make(free_disk_bytes=1 << 62).find()[0]
    assert (finding.kind, finding.severity, finding.entity) == ("disk_nearly_full", "warning", None)
