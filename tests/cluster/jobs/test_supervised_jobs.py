"""Supervised jobs in a coordinator: the same path as other jobs, with their own steps and events."""

import json
import re
from dataclasses import replace

import pytest
import zstandard
from coordinator_fakes import TOKENIZER, Base, RecordingLearners, RecordingStore, make_coordinator, make_job
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import LearnersLostError
from tandem.rl.base_text import BaseText
from tandem.rl.config import CrossEntropy
from tandem.rl.supervised.config import SupervisedConfig

EVENT = {
    *("loss", "learning_rate", "grad_norm", "num_trajectories", "num_tokens", "num_trainable_tokens"),
    *("num_dropped_trajectories", "tokens_per_second"),
}


class TextBase(Base):
    @property
    def text(self):
        return BaseText(self.tokenizer, max_model_len=40)


class SupervisedLearners(RecordingLearners):
    def step(self, sequences, loss, learning_rate, chunk_size, on_wait, on_wait_turn):
        on_wait()
        if self.failures and (error := self.failures.pop(0)):
            raise error
        assert loss == CrossEntropy()
        self.log.append(("step", sum(row.num_trained_tokens for row in sequences), learning_rate))
        return {"loss/train": 2.0 / len(self.log), "loss/grad_norm": 1.0, "loss/entropy": 3.0}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path))


@pytest.fixture
def run(artifacts):
    """Run a job on these rows. Return its store and its learners."""

    def run(rows, failures=(), recorded=0, **options):
        key = "datasets/d.jsonl.zst"
        lines = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
        artifacts.write_blob(key, zstandard.compress(lines.encode()))
        job = make_job(artifacts, config=SupervisedConfig(**options), kind="sft", num_recorded_gradient_steps=recorded)
        job = replace(job, payload_key=key)
        store, learners = RecordingStore(job), SupervisedLearners(failures)
        base = TextBase(AutoTokenizer.from_pretrained(TOKENIZER))
        make_coordinator(base, store, artifacts, learners).run_next()
        return store, learners

    return run


def row(answer, **others):
    return {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}], **others}


def test_each_batch_is_a_step_with_its_event_and_the_version_has_the_numbers_of_all(run):
    rows = [row("a"), row("b"), "\n", row("c"), row("d " * 60), row("e", id=1)]
    store, learners = run(rows, batch_size=2, learning_rate=[0.1, 0.2, 0.3])
    assert [entry[0] for entry in learners.log] == ["load", "step", "step", "step", "finish", "save"]
    assert [entry[2] for entry in learners.log if entry[0] == "step"] == [0.1, 0.2, 0.3]
    started, *warnings = [data for kind, data in store.log[:3]]
    assert started["num_sequences"] == 3
    assert [warning["counts"] for warning in warnings] == [{"too_long": 1}, {"id": 1}]
    steps = [entry[1] for entry in store.log if entry[0] == "gradient_step"]
    assert all(step.keys() == EVENT for step in steps)
    assert [step["num_trajectories"] for step in steps] == [2.0, 1.0, 1.0]
    assert [step["num_dropped_trajectories"] for step in steps] == [0.0, 1.0, 0.0]
    assert store.log[-1][:2] == ("complete", 4)


@pytest.mark.parametrize(
    ("rows", "options", "sentence"),
    [
        ([row("a")] * 5, {"learning_rate": [0.1, 0.1]}, "2 learning rates.* 3 batches"),
        (["{\n"], {}, "line.1"),
        ([row("a"), {"messages": [{"role": "user", "content": "?"}]}], {"assistant_turns": "last"}, "line 2"),
        ([{"messages": [{"role": "user", "content": "?"}]}], {}, "1 have no assistant message"),
    ],
)
def test_data_that_cannot_be_trained_fails_the_job_with_the_place(run, rows, options, sentence):
    store, learners = run(rows, **options)
    assert learners.log == []
    [(kind, message)] = store.log
    assert kind == "fail"
    assert re.search(sentence, message)


def test_an_interrupted_job_is_handed_back_and_records_no_step_twice(run):
    store, _ = run([row("a"), row("b")], failures=[None, LearnersLostError("gone")], batch_size=1)
    assert [entry[0] for entry in store.log] == ["training_started", "gradient_step", "hand_back"]
    store, learners = run([row("a"), row("b")], recorded=1, batch_size=1)
    assert [entry[0] for entry in learners.log if entry[0] == "step"] == ["step", "step"]
    assert [entry[0] for entry in store.log] == ["training_started", "gradient_step", "complete"]
