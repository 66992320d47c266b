"""Trains accepted jobs in this process, on the tiny model, with the traces that a service keeps of their tokens."""

from functools import cache

from serve_fakes import TextModel

from tandem.cluster.artifacts import traces_key
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.payloads.reading import read_groups
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy
from tandem.rl.steps import gradient_steps
from tandem.rl.tiny.model import TINY_MODEL_DIR
from tandem.rl.traces.assembly import assemble
from tandem.rl.traces.recording import StepTrace
from tandem.rl.traces.trace_file import write_traces


@cache
def tiny_learner():
    """A learner with the adapter of version 0."""
    return Learner(Policy.load(TINY_MODEL_DIR, "cpu"))


@cache
def _start():
    return tiny_learner().state()


class Recording:
    """The learner, with the rows and traces of its steps."""

    def __init__(self):
        self.learner, self.steps, self.traces = tiny_learner(), [], []
        self.step_size = self.learner.step_size

    def step(self, rows, *options):
        metrics = self.learner.step(rows, *options)
        self.steps.append(rows)
        self.traces.append(self.learner.trace)
        return metrics


def train(services, claim, learning_rate=0.01, with_traces=True):
    """Run a claimed job from version 0 to its end. Return its batch."""
    store, artifacts = services.store, services.artifacts
    groups = read_groups(artifacts, claim.payload_key, policy=claim.policy)
    batch = TextModel().build_batch(groups, claim.config, claim.shuffle_seed)
    recording = Recording()
    recording.learner.load_state(_start())
    for metrics in gradient_steps(recording, batch.sequences, claim.config, learning_rate, claim.version.step):
        store.claims.record_event(claim, "gradient_step", metrics, len(recording.steps) - 1)
    if with_traces and recording.steps:
        traces = assemble(batch.traced, recording.steps, StepTrace.joined(recording.traces))
        artifacts.write_blob(traces_key(claim.id, claim.attempt), write_traces(traces, "rl", {}))
    store.claims.complete(
        claim, PolicyVersion(claim.model_id, claim.next_step, f"{claim.next_step:064x}"), batch.metrics()
    )
    recording.learner.load_state(_start())
    return batch
