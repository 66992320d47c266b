"""tinker-cookbook's own training loops, unmodified, on local data and the whole service."""

import logging

import pytest
from tinker_service import connect, example_programs

from tandem.rl.tiny.model import TINY_MODEL_DIR


@pytest.fixture(scope="module")
def program(service):
    """Import programs of examples/tinker, with the service's address and key in the environment as a user sets them."""
    levels = {name: logging.getLogger(name).level for name in ("", "httpx", "pylatexenc")}
    handlers = logging.getLogger().handlers[:]
    with pytest.MonkeyPatch.context() as patch, example_programs() as program:
        patch.setenv("TINKER_BASE_URL", service.url)
        patch.setenv("TINKER_API_KEY", f"tml-{service.key}")
        yield program
    logging.getLogger().handlers[:] = handlers  # the loops configure logging for their process
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def loops(program):
    from transformers import AutoTokenizer

    loops = program("cookbook_loops")
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_DIR)
    loops.register_tokenizer(loops.BASE_MODEL, lambda: tokenizer)
    return loops


def values(metrics, name):
    return [row[name] for row in metrics if name in row]


def test_supervised_training_goes_on_where_it_stopped(loops, tmp_path):
    metrics = loops.run("sft", tmp_path, steps=12)
    losses = values(metrics, "train_mean_nll")
    assert len(losses) == 12 and sum(losses[-3:]) / 3 < 0.7 * losses[0]
    assert values(metrics, "test/nll"), "held-out data, by the sampler"
    resumed = loops.run("sft", tmp_path, steps=14)  # from its last checkpoint with the optimizer's state
    assert len(values(resumed, "train_mean_nll")) >= 12


@pytest.mark.slow
def test_reinforcement_learning(loops, tmp_path):
    metrics = loops.run("rl", tmp_path, steps=7)
    rewards = values(metrics, "env/all/reward/total")
    assert len(rewards) == 7 and sum(rewards[-2:]) / 2 > rewards[0] + 0.1


@pytest.mark.slow
def test_reinforcement_learning_that_samples_ahead(loops, tmp_path):
    metrics = loops.run("rl_async", tmp_path, steps=3)
    assert len(values(metrics, "env/all/reward/total")) == 3


def test_preferences(loops, tmp_path):
    losses = values(loops.run("dpo", tmp_path, steps=10), "dpo_loss")
    assert losses[0] == pytest.approx(0.693, abs=0.01) and losses[-1] < 0.6


@pytest.fixture(scope="module")
def teacher(service, program):
    with connect(service) as client:
        trained = program("sft").run(client, steps=15).trained
        return trained.save_weights_for_sampler("teacher").result().path


@pytest.mark.slow
def test_distillation(loops, teacher, tmp_path):
    kl = values(loops.run("on_policy", tmp_path / "on", steps=6, teacher=teacher), "teacher_kl")
    assert len(kl) == 6 and kl[-1] < kl[0]
    losses = values(loops.run("off_policy", tmp_path / "off", steps=6, teacher=teacher), "train/loss:sum")
    assert len(losses) == 6 and losses[-1] < losses[0]
