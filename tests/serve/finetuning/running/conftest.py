import json
import threading

import pytest
import zstandard
from serve_fakes import choice
from waiting import wait_until

from tandem.cluster.errors import LeaseLostError
from tandem.cluster.jobs.job import PolicyVersion
from tandem.serve.finetuning.running.context import RunnerServices
from tandem.serve.finetuning.running.runner import FineTuningRunner

STEP = {"loss/train": 0.5, "loss/grad_norm": 0.1, "loss/learning_rate": 5e-6}


@pytest.fixture
def learning(store, claim):
    """A coordinator that only records events. Tests change the outcome of its jobs, or hold it up."""
    outcome = {"fail": None, "steps": 1, "go": threading.Event(), "claimed": []}
    outcome["go"].set()
    stop = threading.Event()

    def run():
        while not stop.wait(0.02):
            job = claim()
            if job is None:
                continue
            outcome["claimed"].append(job)
            try:
                store.claims.record_event(job, "training_started", {"num_sequences": 1, "num_trained_tokens": 10})
                while not outcome["go"].wait(0.02) and not stop.is_set():
                    if store.jobs.get(job.id, "team").cancel_requested:
                        store.claims.cancel(job)
                        break
                for _ in range(outcome["steps"]):
                    store.claims.record_event(job, "gradient_step", STEP)
                if outcome["fail"]:
                    store.claims.fail(job, outcome["fail"])
                else:
                    version = PolicyVersion(job.model_id, job.next_step, f"{job.next_step:064}")
                    store.claims.complete(job, version, {"reward": 0.25, "loss/train": 0.5})
            except LeaseLostError:
                pass

    thread = threading.Thread(target=run)
    thread.start()
    yield outcome
    stop.set()
    thread.join()


@pytest.fixture
def start_runner(services, app, engine):
    """A function that starts a runner, and returns one that shuts it down."""
    stops = []

    def start():
        current, stop = app.state.services, threading.Event()
        runner = FineTuningRunner(RunnerServices(current.config, current.store, current.artifacts, lambda: engine))
        thread = threading.Thread(target=runner.run, args=(stop,))
        thread.start()

        def shut_down():
            stop.set()
            thread.join(60)
            assert not thread.is_alive()

        stops.append(shut_down)
        return shut_down

    yield start
    for stop in stops:
        stop()


@pytest.fixture
def finished(client):
    """A function that waits until a job has ended, and returns it."""

    def finished(job):
        wait_until(lambda: client.fine_tuning.jobs.retrieve(job.id).finished_at)
        return client.fine_tuning.jobs.retrieve(job.id)

    return finished


@pytest.fixture
def payload(services):
    """A function that returns the body of a training job."""

    def payload(job):
        raw = services.artifacts.read_blob(job.payload_key)
        return json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(raw))

    return payload


@pytest.fixture
def says(engine):
    """A function that sets the text of all answers."""

    def says(text):
        message = {"role": "assistant", "content": text, "refusal": None, "tool_calls": None}
        engine.answers({"choices": [choice(message=message)], "usage": {"total_tokens": 9}})

    return says
