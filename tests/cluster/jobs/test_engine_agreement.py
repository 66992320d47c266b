"""The events of a job whose engine disagrees with its learners, on the base model or on the version that it makes."""

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError, VersionNotFiniteError
from tandem.cluster.jobs.engine_agreement import EngineAgreement
from tandem.rl.version_probe import VersionProbe

TOKENS = list(range(48))
OWN = [-4.0 - 0.01 * k for k in range(47)]
RIGHT = {"is_right": True, "max": 1e-6, "mean": 1e-7, "tolerance_max": 1e-3, "tolerance_mean": 3e-4, "answers_as": None}
WRONG = RIGHT | {"is_right": False, "max": 0.5, "mean": 0.1, "answers_as": "the version before"}


class ProbedLearners(RecordingLearners):
    def base_probe(self, on_wait):
        self.log.append(("base_probe",))
        return VersionProbe(TOKENS, OWN, "torch.float32")


@pytest.fixture
def run(base, artifacts):
    """Run jobs, one after the other, with an engine. Return the store, the learners and the agreement."""

    def run(error=0.0, report=RIGHT, num_jobs=1):
        def score(sequences, digest, timeout_s):
            if isinstance(error, Exception):
                raise error
            assert digest == "digest-of-0"
            return [[float("nan"), *(value + error for value in OWN)] for _ in sequences]

        def check(digest, timeout_s):
            if isinstance(report, Exception):
                raise report
            assert digest == "digest-after"
            return report

        store = RecordingStore(*(make_job(artifacts) for _ in range(num_jobs)))
        learners = ProbedLearners()
        agreement = EngineAgreement("base", "digest-of-0", "float32", learners, score, check)
        coordinator = make_coordinator(base, store, artifacts, learners, agreement=agreement)
        while store.jobs:
            coordinator.run_next()
        return store, learners, agreement

    return run


def alarms(store):
    return [data for name, data in (entry for entry in store.log if len(entry) == 2) if name == "engine_disagrees"]


@pytest.mark.parametrize("report", [RIGHT, None], ids=["right", "no probe"])
def test_an_engine_that_agrees_is_no_event(run, report):
    store, learners, agreement = run(error=1e-5, report=report, num_jobs=2)
    assert store.order == ["training_started", "gradient_step", "complete"] * 2
    assert learners.log.count(("base_probe",)) == 1, "the base model is compared once"
    assert agreement.alarm is None


def test_a_disagreement_about_the_base_model_is_an_event_of_every_job(run):
    store, _, agreement = run(error=0.01, num_jobs=2)
    assert store.order == ["training_started", "engine_disagrees", "gradient_step", "complete"] * 2
    assert alarms(store)[0]["max"] == pytest.approx(0.01)
    assert alarms(store)[0]["step"] == 0 and alarms(store)[0]["reason"] == agreement.alarm


@pytest.mark.parametrize("error", [0.5, float("nan")])
def test_a_base_model_that_the_engine_computes_clearly_differently_is_not_trained(run, error):
    store, learners, _ = run(error=error)
    assert store.order == ["training_started", "fail"]
    assert "base" in store.log[-1][1] and "nats" in store.log[-1][1]
    assert ("save", 4) not in learners.log


def test_a_version_that_the_engine_does_not_apply_is_an_event_before_the_job_ends(run):
    store, _, _ = run(report=WRONG)
    assert store.order == ["training_started", "gradient_step", "engine_disagrees", "complete"]
    [alarm] = alarms(store)
    assert (alarm["step"], alarm["digest"]) == (4, "digest-after")
    assert alarm["max"] == 0.5 and "the version before" in alarm["reason"]


def test_a_version_that_is_not_finite_on_the_engine_is_not_published(run):
    store, _, _ = run(report=VersionNotFiniteError("digest-after", "its logits on the probe aren't finite"))
    assert store.order == ["training_started", "gradient_step", "fail"]
    assert "learning_rate" in store.log[-1][1]


def test_a_version_that_the_engine_cannot_load_is_an_event(run):
    store, _, _ = run(report=AdapterUnavailableError("its file is damaged"))
    assert "its file is damaged" in alarms(store)[0]["reason"]
    assert store.order[-1] == "complete"


@pytest.mark.parametrize("error", [EngineDeadError("it died"), TimeoutError()])
def test_an_engine_that_does_not_answer_delays_no_job(run, error):
    store, learners, _ = run(error=error, report=error, num_jobs=2)
    assert store.order == ["training_started", "gradient_step", "complete"] * 2
    assert learners.log.count(("base_probe",)) == 2, "the next job tries again"
