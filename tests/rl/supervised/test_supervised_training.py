"""Supervised training equals a plain torch loop over single rows, whatever packing and sharing do."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem.rl.base_text import BaseText
from tandem.rl.checkpoints import LearnerState, write_checkpoint
from tandem.rl.errors import ConfigError
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.settings import OptimizerSettings
from tandem.rl.supervised.batch import NothingToTrainError, SupervisedBatch, build_supervised
from tandem.rl.supervised.config import SupervisedConfig
from tandem.rl.supervised.rows import SupervisedRow
from tandem.rl.supervised.steps import supervised_steps
from tandem.rl.tiny.model import TINY_MODEL_DIR

SYSTEM = {"role": "system", "content": "You add numbers for people who can't, politely and without any hurry. " * 3}
RATES = [3e-3, 1e-3, 2e-3]


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_MODEL_DIR)


def ask(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


ROWS = [
    [SYSTEM, *ask("1 + 1 = ?", "2"), *ask("and 2 more?", "4, I think")],
    [SYSTEM, *ask("5 + 5 = ?", "ten")],
    ask("say nothing", "no"),
    [SYSTEM, *ask("5 + 6 = ?", "eleven"), *ask("sure?", "yes"), *ask("really?", "quite sure")],
    ask("hi", "hello"),
]


def rows_of(conversations=ROWS):
    return [(line, SupervisedRow(messages=messages)) for line, messages in enumerate(conversations, start=1)]


def build(conversations=ROWS, limit=512, **options) -> SupervisedBatch:
    config = SupervisedConfig.model_validate_json(json.dumps(options))
    return build_supervised(rows_of(conversations), BaseText(tokenizer(), limit), config)


def train(batch: SupervisedBatch, state: LearnerState, learners=None):
    policy = Policy.load(TINY_MODEL_DIR, device="cpu")
    learner = Learner(policy, OptimizerSettings())
    learner.load_state(state)
    return list(supervised_steps(learners(learner) if learners else learner, batch)), learner.state()


@pytest.fixture(scope="module")
def start() -> LearnerState:
    """A version with other weights than the base model's, and no optimizer state."""
    policy = Policy.load(TINY_MODEL_DIR, device="cpu")
    generator = torch.Generator().manual_seed(5)
    adapter = {
        name: value + 0.02 * torch.randn(value.shape, generator=generator)
        for name, value in policy.adapter_state().items()
    }
    return LearnerState(adapter=adapter, optimizer={})


def labels_of(messages, turns):
    """Return the ids of a conversation, and those that are trained, -100 elsewhere: by rendering prefixes."""

    def render(count, prompt):
        text = tokenizer().apply_chat_template(messages[:count], tokenize=False, add_generation_prompt=prompt)
        return tokenizer().encode(text, add_special_tokens=False)

    ids = render(len(messages), False)
    labels = [-100] * len(ids)
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and (turns == "all" or index == len(messages) - 1):
            begin, end = len(render(index, True)), len(render(index + 1, False))
            labels[begin:end] = ids[begin:end]
    return torch.tensor([ids]), torch.tensor([labels])


def reference(start, tmp_path, turns, batch_size, rates):
    """Train with PEFT and torch's own loss, row by row."""
    policy = Policy.load(TINY_MODEL_DIR, device="cpu")
    checkpoint = write_checkpoint(tmp_path, start, policy.adapter_config(), {"base_model": "tiny", "step": 1})
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL_DIR, dtype=torch.float32, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, tmp_path / checkpoint.digest, is_trainable=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0)
    trace = []
    for number, begin in enumerate(range(0, len(ROWS), batch_size)):
        pairs = [labels_of(messages, turns) for messages in ROWS[begin : begin + batch_size]]
        count = sum(int((labels != -100).sum()) for _, labels in pairs)
        total = 0.0
        for ids, labels in pairs:
            logits = model(input_ids=ids).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0).item()
        optimizer.param_groups[0]["lr"] = rates[number]
        optimizer.step()
        optimizer.zero_grad()
        trace.append((total, norm, count))
    adapter = {
        name.replace(".default", ""): value.detach() for name, value in model.named_parameters() if value.requires_grad
    }
    return trace, adapter


@pytest.mark.parametrize("turns", ["all", "last"])
def test_it_is_a_plain_loop(start, tmp_path, turns):
    trace, adapter = reference(start, tmp_path, turns, 2, RATES)
    steps, state = train(build(batch_size=2, assistant_turns=turns, learning_rate=RATES), start)
    assert [step["learning_rate"] for step in steps] == RATES
    for step, (loss, norm, count) in zip(steps, trace, strict=True):
        assert step["loss"] == pytest.approx(loss, rel=1e-5)
        assert step["grad_norm"] == pytest.approx(norm, rel=1e-4)
        assert step["num_trainable_tokens"] == count
    assert adapter.keys() == state.adapter.keys()
    for name, value in adapter.items():
        torch.testing.assert_close(state.adapter[name], value, rtol=0, atol=1e-5)
        assert not torch.equal(state.adapter[name], start.adapter[name])


def test_prefixes_are_shared_without_changing_the_update(start):
    packed = build(batch_size=5, learning_rate=1e-3)
    apart = build_supervised(
        rows_of(), BaseText(tokenizer(), 512, shares_prefixes=False), SupervisedConfig(batch_size=5, learning_rate=1e-3)
    )
    assert sum(row.num_tokens for row in packed.sequences) < sum(row.num_tokens for row in apart.sequences)
    (one, of_packed), (other, of_apart) = train(packed, start), train(apart, start)
    assert one[0]["loss"] == pytest.approx(other[0]["loss"], rel=1e-6)
    for name, value in of_packed.adapter.items():
        torch.testing.assert_close(value, of_apart.adapter[name], rtol=0, atol=1e-5)


def test_rows_keep_their_order_and_the_last_batch_may_be_short():
    batch = build(batch_size=2)
    assert [step.num_trajectories for step in batch.steps] == [2, 2, 1]
    assert [step.learning_rate for step in batch.steps] == [5e-5] * 3

    def users(rows: tuple[PackedSequence, ...]) -> str:
        return tokenizer().decode(torch.cat([row.token_ids for row in rows]))

    assert all(word in users(batch.steps[0].rows) for word in ("1 + 1", "5 + 5"))
    assert all(word in users(batch.steps[1].rows) for word in ("nothing", "5 + 6"))
    assert batch.steps[2].num_trainable_tokens == int((labels_of(ROWS[4], "all")[1] != -100).sum())


def test_the_default_is_two_rows_and_every_turn():
    default = build()
    assert [step.num_trainable_tokens for step in default.steps] == [
        step.num_trainable_tokens for step in build(batch_size=2, assistant_turns="all").steps
    ]


def test_long_rows_are_dropped_and_counted_and_an_empty_batch_makes_no_step(start):
    batch = build(
        [ROWS[0], [{"role": "user", "content": "hi"}], *ROWS[2:3]], limit=40, batch_size=2, learning_rate=1e-3
    )
    assert [(step.num_trajectories, step.num_dropped_trajectories) for step in batch.steps] == [(1, 1), (1, 0)]
    assert [bool(step.rows) for step in batch.steps] == [False, True]
    assert batch.num_untrained == 1
    steps, state = train(batch, start)
    assert (steps[0]["loss"], steps[0]["grad_norm"], steps[0]["num_dropped_trajectories"]) == (0.0, 0.0, 1.0)
    [alone], of_alone = train(build(ROWS[2:3], batch_size=2, learning_rate=1e-3), start)
    assert alone["loss"] == steps[1]["loss"]
    assert all(torch.equal(state.adapter[name], value) for name, value in of_alone.adapter.items())
    assert {int(value) for name, value in state.optimizer.items() if name.endswith(".step")} == {1}


def test_too_few_learning_rates_are_refused_with_both_numbers():
    with pytest.raises(ConfigError, match=r"2 learning rates.* 3 batches") as caught:
        build(batch_size=2, learning_rate=[1e-3, 1e-3])
    assert caught.value.field == "learning_rate"
    assert [step.learning_rate for step in build(batch_size=2, learning_rate=[1.0, 0.5, 0.25, 9e-1]).steps] == [
        1.0,
        0.5,
        0.25,
    ]


@pytest.mark.parametrize(
    ("conversations", "limit", "numbers"),
    [
        ([], 40, "no rows"),
        ([ROWS[0]], 40, "1 rows.*1 are longer.* 40"),
        ([[{"role": "user", "content": "hi"}]], 40, "1 have no"),
    ],
)
def test_data_without_anything_to_train_is_refused_with_the_reason(conversations, limit, numbers):
    with pytest.raises(NothingToTrainError, match=numbers):
        build(conversations, limit=limit)


def test_settings_of_supervised_steps_end_with_them(start):
    """Decay and clipping of later steps of another kind are those of the configuration again."""
    from tandem.rl.config import LossConfig

    learner = Learner(Policy.load(TINY_MODEL_DIR, device="cpu"), OptimizerSettings())
    learner.load_state(start)
    [row] = build(ROWS[:1], batch_size=1).steps[0].rows
    row = replace(row, advantages=row.loss_mask.float(), weights=row.loss_mask.float())
    learner.step([row], LossConfig(), 1e-3)
    expected = learner.state()
    learner.load_state(start)
    list(supervised_steps(learner, build(ROWS[:1], batch_size=1, learning_rate=0.0)))
    learner.load_state(start)
    learner.step([row], LossConfig(), 1e-3)
    assert all(torch.equal(value, learner.state().adapter[name]) for name, value in expected.adapter.items())
