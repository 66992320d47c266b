"""Jobs on real learners and a real store that are interrupted in the middle: they end as if they hadn't been."""

import os
import shutil
import signal
import uuid

import pytest
import ray
from coordinator_fakes import LocalPreparation, make_coordinator, make_job, trajectory

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import BaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig
from tandem.cluster.learner_group import LearnerGroup
from tandem.cluster.patient_store import PatientStore
from tandem.rl.config import TrainingConfig
from tandem.serve.store import Store

NUM_GROUPS = 8  # each makes one packed sequence
CONFIG = TrainingConfig(packed_sequence_length=24, learning_rate=1e-3)


class Run:
    """A coordinator over its own copy of one accepted job; `at_step` is called after the second gradient step."""

    def __init__(self, directory, root, count, at_step=lambda run: None, **settings):
        self.base = BaseModel(base_config(count))
        self.url, self.root, self.settings = f"sqlite:///{directory / 'tandem.db'}", root, settings
        self.at_step, self.count = at_step, 0
        self.store = Store(self.url)
        self.begin()

    def begin(self):
        """A new coordinator, as after a restart of the service."""
        run, artifacts = self, Artifacts(self.root)

        class Watched(PatientStore):
            def record_event(self, job, type, *arguments):
                super().record_event(job, type, *arguments)
                run.count += type == "gradient_step"
                if type == "gradient_step" and run.count == 2:
                    run.at_step(run)

        self.learners = LearnerGroup(self.base.config, self.base.path, self.root, DeadlinesConfig())
        preparation = LocalPreparation(self.base, artifacts)
        self.coordinator = make_coordinator(
            self.base, Watched(self.store, 30), artifacts, self.learners, preparation=preparation, **self.settings
        )

    def to_the_end(self):
        """Runs the job until it has ended. Returns its row and the digest of its version."""
        while (job := self.store.jobs("default", 1)[0]).state in ("queued", "running"):
            assert self.coordinator.run_next(), job.error
        self.learners.stop()
        assert job.state == "succeeded", job.error
        events = [event.type for event in self.store.events(job.id, "default", 100)]
        assert events == ["training_started", *["gradient_step"] * (NUM_GROUPS // self.learners.sequences_per_step),
                          "training_ended"]  # fmt: skip
        return job, self.store.resolve("default", "tests", "m", 1).digest


def base_config(count):
    return BaseModelConfig(
        name="tandem/tiny", path="builtin:tiny", learners=LearnersConfig(count=count, num_cpus=0.5, num_gpus=0)
    )


@pytest.fixture(scope="module")
def accepted(tiny_model, tmp_path_factory):
    """A store with one accepted job, and the root of its artifacts: to be copied, as digests depend on the job's id."""
    directory = tmp_path_factory.mktemp("accepted")
    artifacts = Artifacts(str(directory / "artifacts"))
    store = Store(f"sqlite:///{directory / 'tandem.db'}")
    store.put_initial_version("tandem/tiny", BaseModel(base_config(1)).write_initial_version(artifacts))
    model = store.add_model("default", "tests", "m", "tandem/tiny", return_existing=False)
    groups = [{"trajectories": [trajectory(1.0, 70 + k, 11), trajectory(0.0, 90 + k, 13)]} for k in range(NUM_GROUPS)]
    key = make_job(artifacts, groups).payload_key
    store.add_job(str(uuid.uuid4()), model.id, key, CONFIG.model_dump(mode="json", exclude_none=True), "0" * 64)
    return directory


@pytest.fixture
def start(accepted, ray_local, tmp_path):
    def start(name, count, *arguments, **settings):
        shutil.copytree(accepted, tmp_path / name)
        return Run(tmp_path / name, str(tmp_path / name / "artifacts"), count, *arguments, **settings)

    return start


def kill_a_learner(run):
    worker = run.learners._workers[-1]
    os.kill(ray.get(worker.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def stop_the_service(run):
    run.coordinator.stop()


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_whose_learner_is_killed_or_whose_service_is_stopped_makes_the_same_version(start, count):
    _, expected = start("undisturbed", count).to_the_end()

    killed = start("killed", count, kill_a_learner)
    job, digest = killed.to_the_end()
    assert (job.attempt, job.num_handed_back) == (2, 0)
    assert digest == expected

    stopped = start("stopped", count, stop_the_service, stop_grace_s=0)
    stopped.coordinator.run()
    stopped.learners.stop()
    stopped.begin()
    job, digest = stopped.to_the_end()
    assert (job.attempt, job.num_handed_back) == (2, 1)
    assert digest == expected
