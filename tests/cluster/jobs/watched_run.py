"""A job on real learners and a real store, with a coordinator in the test's process that tests can disturb."""

import uuid

import pytest
from coordinator_fakes import LocalPreparation, make_coordinator, make_job, trajectory

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, LearnersConfig
from tandem.cluster.jobs.patient_store import PatientStore
from tandem.cluster.jobs.phases import PHASES
from tandem.cluster.learners.group import LearnerGroup
from tandem.rl.config import TrainingConfig
from tandem.serve.store.store import Store
from tandem.serve.usage.timeline import timeline

CONFIG = TrainingConfig(packed_sequence_length=24, learning_rate=1e-3)


class Run:
    """A coordinator over its own copy of one accepted job; `at_step` is called after the second gradient step."""

    def __init__(self, directory, learners, at_step=lambda run: None, learners_of=None, **settings):
        """`directory` holds what `accept_job` made; `learners` are options of LearnersConfig.

        `learners_of` is an ended run over the same artifacts; its learners are used instead of new ones.
        """
        self.base = ResolvedBaseModel(base_config(**learners))
        self.root, self.settings = str(directory / "artifacts"), settings
        self.at_step, self.count = at_step, 0
        self.store = Store(store_url(directory))
        self.begin(learners_of and learners_of.learners)

    def begin(self, learners=None):
        """Make a new coordinator, and new learners unless some are given, as after a restart of the service."""
        run, artifacts = self, Artifacts(self.root)

        class Watched(PatientStore):
            def record_event(self, job, type, *arguments):
                super().record_event(job, type, *arguments)
                run.count += type == "gradient_step"
                if type == "gradient_step" and run.count == 2:
                    run.at_step(run)

        self.learners = learners or LearnerGroup(self.base.config, self.root, DeadlinesConfig())
        preparation = LocalPreparation(self.base, artifacts)
        self.coordinator = make_coordinator(
            self.base,
            Watched(self.store.claims, 30),
            artifacts,
            self.learners,
            preparation=preparation,
            **self.settings,
        )

    def to_the_end(self):
        """Run the job to its end. Return its row and the digest of its version. The learners keep running."""
        while (job := self.store.jobs.page("default", 1)[0]).state in ("queued", "running"):
            assert self.coordinator.run_next(), job.error
        assert job.state == "succeeded", job.error
        started, *steps, ended = self.store.jobs.events(job.id, "default", 1000)
        assert (started.type, ended.type) == ("training_started", "training_ended")
        assert [step.type for step in steps] == ["gradient_step"] * started.data["num_gradient_steps"]
        return job, self.store.versions.resolve("default", "tests", "m", 1).digest

    def check_accounts(self, job, num_learners):
        """Check that every second of the ended job has a name, and 95 % of them another one than idle."""
        found = timeline(job, self.store.phases.of_job(job.id), self.store.database.now())
        wall_s = (job.ended_at - job.created_at).total_seconds()
        seconds = {name: sum(one.seconds for one in found if one.name == name) for name in PHASES}
        assert sum(seconds.values()) == pytest.approx(wall_s, rel=1e-3, abs=0.05), seconds
        assert seconds["idle"] <= 0.05 * wall_s, [(one.name, one.reason, one.seconds) for one in found]
        assert {one.attempt for one in found if one.attempt} == set(range(1, job.attempt + 1))
        for one in found:
            held = one.name in ("load", "step", "check_version")
            if held:
                assert one.learner_seconds == pytest.approx(num_learners * one.seconds, abs=0.01)
            elif one.name in ("queued", "prepare", "start_learners", "wait_turn", "checkpoint", "seal"):
                assert one.learner_seconds < 0.01
        tokens = [row for row in self.store.phases.of_job(job.id)[-1].phases if row.trained_tokens]
        assert tokens and {row.name for row in tokens} == {"step"}


def store_url(directory):
    return f"sqlite:///{directory / 'tandem.db'}"


def base_config(**learners):
    return BaseModelConfig(
        name="tandem/tiny", path="builtin:tiny", learners=LearnersConfig(num_cpus=0.5, num_gpus=0, **learners)
    )


def accept_job(directory, num_groups):
    """Make a store with one accepted job, and its artifacts. Tests copy them, because digests depend on the job's id.

    Each group makes one packed sequence.
    """
    artifacts = Artifacts(str(directory / "artifacts"))
    store = Store(store_url(directory))
    store.claims.put_initial_version("tandem/tiny", ResolvedBaseModel(base_config()).write_initial_version(artifacts))
    model = store.models.add("default", "tests", "m", "tandem/tiny", return_existing=False)
    groups = [
        {"trajectories": [trajectory(1.0, 70 + k % 20, 11), trajectory(0.0, 90 + k % 20, 13)]}
        for k in range(num_groups)
    ]
    key = make_job(artifacts, groups).payload_key
    store.jobs.add(str(uuid.uuid4()), model.id, key, CONFIG.model_dump(mode="json", exclude_none=True), "0" * 64)
    store.close()
