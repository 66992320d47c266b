"""The events of a job whose engine disagrees with its learners, on the base model or on the version that it makes."""

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job
from waiting import wait_until

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError, StageError, VersionNotFiniteError
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
def offers():
    """What the engines were given with each version: its files, or None once they can fetch it."""
    return []


@pytest.fixture
def run(base, artifacts, offers):
    """Run jobs, one after the other, with two engines. Return the store, the learners and the agreement."""

    def run(error=0.0, report=RIGHT, num_jobs=1):
        """`report` is the answer of the second of two engines, or makes the answers of all."""

        def score(sequences, digest, timeout_s):
            if isinstance(error, Exception):
                raise error
            assert digest == "digest-of-0"
            return [[float("nan"), *(value + error for value in OWN)] for _ in sequences]

        def check(digest, files, timeout_s):
            assert digest == "digest-after"
            offers.append(files)
            if callable(report):
                return report(files, learners)
            return [RIGHT, report]

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


def test_engines_load_a_version_while_it_is_written_and_before_it_is_the_newest(run, offers):
    def report(files, learners):
        wait_until(lambda: ("save", 4) in learners.log)
        return [RIGHT, WRONG]

    store, learners, _ = run(report=report)
    assert offers == ["files"]
    assert learners.log[-2:] == [("seal", 4), ("save", 4)]
    assert store.order == ["training_started", "gradient_step", "engine_disagrees", "complete"]


@pytest.mark.parametrize("lost", [AdapterUnavailableError("x"), EngineDeadError("it died"), OSError("object lost")])
def test_an_engine_that_cannot_use_the_offered_files_fetches_them_once_they_are_durable(run, offers, lost):
    store, _, _ = run(report=lambda files, _: [RIGHT, lost] if files else [RIGHT, RIGHT])
    assert offers == ["files", None]
    assert store.order == ["training_started", "gradient_step", "complete"]


def test_an_offer_that_fails_as_a_whole_is_repeated_with_the_durable_files(run, offers):
    def report(files, learners):
        if files:
            raise RuntimeError("no replica runs")
        return [WRONG]

    store, _, _ = run(report=report)
    assert offers == ["files", None]
    assert "engine_disagrees" in store.order


def test_an_engine_that_is_slow_is_not_asked_again(run, offers):
    store, _, _ = run(report=TimeoutError())
    assert offers == ["files"]
    assert store.order == ["training_started", "gradient_step", "complete"]


def test_an_offered_version_whose_write_fails_is_not_published(run, offers, monkeypatch):
    def save(self, metadata, on_wait):
        raise StageError("checkpoint", "the disk is full", "")

    monkeypatch.setattr(ProbedLearners, "save", save)
    store, _, _ = run()
    assert store.order == ["training_started", "gradient_step", "fail"]
