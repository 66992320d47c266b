"""Training on pairs equals equation 7 over single rows, whatever packing, splitting and further learners do."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from transformers import AutoTokenizer

from tandem.rl.base_text import BaseText
from tandem.rl.config import DEFAULT_LOGPROB_CHUNK_SIZE, Dpo
from tandem.rl.gradient_step.row_splitting import split_row
from tandem.rl.learner import Learner
from tandem.rl.losses import shift_right
from tandem.rl.packing import pack
from tandem.rl.policy import Policy
from tandem.rl.preferences.batch import build_preferences, tokenize_pair
from tandem.rl.preferences.config import PreferenceConfig
from tandem.rl.preferences.rows import PreferenceRow
from tandem.rl.preferences.steps import preference_steps
from tandem.rl.settings import OptimizerSettings
from tandem.rl.supervised.batch import NothingToTrainError
from tandem.rl.supervised.rows import RowError
from tandem.rl.tiny.model import TINY_MODEL_DIR
from tandem.rl.tokens.tokenizing import ChatTokenizer

SYSTEM = {"role": "system", "content": "You add numbers for people who can't, politely and without any hurry. " * 3}
PAIRS = [
    ([SYSTEM, {"role": "user", "content": "1 + 1 = ?"}], "The sum is 2.", "The sum is 3, or perhaps more."),
    ([{"role": "user", "content": "Say yes or no"}], "yes", "no"),
    ([SYSTEM, {"role": "user", "content": "5 + 5 = ?"}], "ten", "I don't know."),
]
UNCLIPPED = OptimizerSettings(max_grad_norm=1e9)


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_MODEL_DIR)


def row(messages, preferred, other):
    return PreferenceRow.model_validate(
        {
            "input": {"messages": messages},
            "preferred_output": [{"role": "assistant", "content": preferred}],
            "non_preferred_output": [{"role": "assistant", "content": other}],
        }
    )


def build(pairs=PAIRS, limit=512, **options):
    rows = [(line, row(*pair)) for line, pair in enumerate(pairs, start=1)]
    return build_preferences(rows, BaseText(tokenizer(), limit), PreferenceConfig(**options))


def new_learner():
    policy = Policy.load(TINY_MODEL_DIR, device="cpu")
    generator = torch.Generator().manual_seed(5)
    state = policy.adapter_state()
    policy.load_adapter_state({name: t + 0.02 * torch.randn(t.shape, generator=generator) for name, t in state.items()})
    return Learner(policy, UNCLIPPED)


@pytest.fixture(scope="module")
def learner():
    return new_learner()


@pytest.fixture
def start(learner):
    state = learner.state()
    yield state
    learner.load_state(state)


def with_reference(rows, shift=0.3):
    """Rows with reference logprobs that depend on the token and its position alone, as those of any model would."""
    return [replace(row, ref_logprobs=-2 - shift * ((row.token_ids + row.positions) % 5)) for row in rows]


def gradient(learner):
    return torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters.values()]).clone()


def gradient_of(learner, rows, objective):
    state = learner.state()
    learner.forward_backward(with_reference(rows), objective, 7)
    found = gradient(learner) / learner._sums[0].item()
    learner.load_state(state)
    return found


def test_the_gradient_is_that_of_the_equation_over_single_rows(learner, start):
    objective = Dpo(beta=0.2, first_pair=0, num_pairs=3)
    [step] = build(batch_size=3).steps
    found = gradient_of(learner, step.rows, objective)
    chat, losses = ChatTokenizer(tokenizer()), []
    for number, pair in enumerate(PAIRS):
        h = 0.0
        for sequence, sign in zip(tokenize_pair(row(*pair), chat, 1, number), (1, -1), strict=True):
            [alone] = with_reference(pack([replace(sequence, prompt_length=0)], 512))
            logprobs = shift_right(learner.policy.logprobs(alone, DEFAULT_LOGPROB_CHUNK_SIZE)[0], 0.0)
            h = h + sign * (logprobs - alone.ref_logprobs)[alone.loss_mask].sum()
        losses.append(-torch.nn.functional.logsigmoid(0.2 * h))
    learner.forward_backward([], objective, 7)  # zeroes nothing, and adds nothing
    torch.stack(losses).mean().backward()
    torch.testing.assert_close(found, gradient(learner), rtol=1e-4, atol=1e-7)


def test_packing_and_splitting_change_nothing(learner, start):
    objective = Dpo(beta=0.2, first_pair=0, num_pairs=3)
    [step] = build(batch_size=3).steps
    found = gradient_of(learner, step.rows, objective)
    sequences = [
        sequence
        for number, pair in enumerate(PAIRS)
        for sequence in tokenize_pair(row(*pair), ChatTokenizer(tokenizer()), 1, number)
    ]
    alone = [packed for sequence in sequences for packed in pack([replace(sequence, prompt_length=0)], 512)]
    split = [piece.row for packed in step.rows for piece in split_row(packed, max(s.num_tokens for s in sequences))]
    assert len(alone) == 6 and len(split) > len(step.rows)
    assert sum(packed.num_tokens for packed in step.rows) < sum(packed.num_tokens for packed in alone)
    for rows in (alone, split, alone[::-1]):
        torch.testing.assert_close(gradient_of(learner, rows, objective), found, rtol=1e-4, atol=1e-7)


def shares():
    """The rows of a step for each of two learners: the answers of a pair lie on both."""
    [step] = build(batch_size=3).steps
    pieces = [piece.row for packed in step.rows for piece in split_row(packed, 1)]
    return [with_reference(pieces[::2]), with_reference(pieces[1::2])]


def one_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = new_learner()
    metrics = learner.step(shares()[rank], Dpo(0.2, 0, 3), 1e-3)
    torch.save((metrics, learner.state().adapter), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_learners_equal_one(learner, start, tmp_path):
    run_ranks(one_rank, (tmp_path,))
    first, second = shares()
    metrics = learner.step([*first, *second], Dpo(0.2, 0, 3), 1e-3)
    for rank in (0, 1):
        theirs, adapter = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert theirs == pytest.approx(metrics, abs=1e-5)
        for name, tensor in learner.state().adapter.items():
            torch.testing.assert_close(adapter[name], tensor, rtol=0, atol=2e-6)


def test_the_margin_rises_from_nothing(learner, start):
    batch, config = build(PAIRS * 4, batch_size=3), PreferenceConfig(batch_size=3, learning_rate=2e-3, beta=0.5)

    def score(version, rows):
        assert version == "start"
        return learner.score(rows)

    found = list(preference_steps(learner, batch, config, score, "start"))
    assert [step.first_pair for step in batch.steps] == [0, 3, 6, 9]
    first, last = found[0], found[-1]
    assert first["loss/train"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-4), "sigma(0) is a half"
    assert first["dpo/reward_margin"] == pytest.approx(0, abs=1e-4)
    assert last["dpo/reward_margin"] > 0.1 and last["dpo/accuracy"] == 1 and last["loss/train"] < first["loss/train"]


def test_answers_train_where_they_differ(learner):
    preferred, other = tokenize_pair(row(*PAIRS[0]), ChatTokenizer(tokenizer()), 1, 0)
    texts = [tokenizer().decode(sequence.token_ids[sequence.loss_mask]) for sequence in (preferred, other)]
    assert texts[0].startswith(" 2.") and texts[1].startswith(" 3, or perhaps more.")
    assert (preferred.advantage, other.advantage, preferred.group, other.group) == (1, -1, 0, 0)


def test_pairs_that_are_too_long_are_left_out_and_counted():
    batch = build(limit=60)
    assert (batch.num_pairs, batch.num_too_long) == (1, 2)
    with pytest.raises(NothingToTrainError):
        build(limit=10)


def test_answers_that_are_the_same_are_refused_with_the_line():
    with pytest.raises(RowError, match="line 2"):
        build([PAIRS[1], ([{"role": "user", "content": "hi"}], "hello", "hello")])
