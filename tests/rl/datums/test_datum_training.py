"""Gradients of datums: those of a plain model in float64, however datums are packed, ordered and spread over calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import LINEAR, family, save
from out_of_memory_policy import fail_above, new_learner
from plain_losses import OPTIONS, PlainModel, call_datums
from small_models import VOCABULARY, randomise_adapter
from torch import Tensor

from tandem.rl.checkpoints import LearnerState
from tandem.rl.datums.datum import Call, Datum, DatumError, check_call
from tandem.rl.datums.rows import pack_datums
from tandem.rl.datums.training import DatumOutputs
from tandem.rl.learner import Learner
from tandem.rl.packing import one_segment
from tandem.rl.policy import Policy, initial_adapter
from tandem.rl.settings import AdamStep, LoraSettings

EXACT = 1e-5
"""Relative, in float32 against float64."""
PACKED = 400
OTHER = LoraSettings(r=3, alpha=6, target_modules=("q_proj", "down_proj"))


@pytest.fixture(scope="module")
def learner(qwen3_path: Path) -> Learner:
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


@pytest.fixture(scope="module")
def plain(qwen3_path: Path, learner: Learner) -> PlainModel:
    return PlainModel(qwen3_path, learner.policy)


def gradient(learner: Learner) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters.values()]).clone()


def accumulate(
    learner: Learner,
    datums: Sequence[Datum],
    loss: str,
    options: Mapping[str, float] | None = None,
    packed_length: int = PACKED,
    forward_only: bool = False,
) -> DatumOutputs:
    options = OPTIONS[loss] if options is None else options
    check_call(Call(datums, loss, options), VOCABULARY, 512)
    rows = pack_datums(datums, packed_length, learner.policy.shares_prefixes)
    return learner.accumulate(rows, loss, options, forward_only, chunk_size=7)


def gradient_of(learner: Learner, *calls: tuple[Sequence[Datum], str], packed_length: int = PACKED) -> Tensor:
    """Return the sum over calls, and discard it."""
    for datums, loss in calls:
        accumulate(learner, datums, loss, packed_length=packed_length)
    found = gradient(learner)
    learner.discard_gradient()
    assert not gradient(learner).any()
    return found


def assert_same(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    error = float((found - expected).norm() / expected.norm())
    assert error < tolerance, error


@pytest.mark.parametrize("loss", OPTIONS)
def test_gradients_are_those_of_a_plain_model_in_float64(learner: Learner, plain: PlainModel, loss: str) -> None:
    datums = call_datums(loss)
    expected_loss, expected = plain.gradient(datums, loss, OPTIONS[loss])
    outputs = accumulate(learner, datums, loss)
    found = gradient(learner)
    learner.discard_gradient()
    assert_same(found, expected)
    assert outputs.sums["loss"] == pytest.approx(expected_loss, rel=EXACT)
    for index, datum in enumerate(datums):
        torch.testing.assert_close(outputs.logprobs[index].double(), plain.logprobs(datum), rtol=0, atol=EXACT)


@pytest.mark.parametrize("loss", OPTIONS)
def test_the_sum_depends_neither_on_packing_nor_on_order(learner: Learner, loss: str) -> None:
    datums = call_datums(loss)
    together = gradient_of(learner, (datums, loss))
    assert_same(gradient_of(learner, (datums, loss), packed_length=1), together)
    assert_same(gradient_of(learner, (datums, loss), packed_length=60), together)
    assert_same(gradient_of(learner, (datums[::-1], loss)), together)


def test_outputs_are_those_of_each_datum(learner: Learner) -> None:
    datums = call_datums("ppo")
    outputs = accumulate(learner, datums, "ppo", packed_length=60, forward_only=True)
    backwards = accumulate(learner, datums[::-1], "ppo", forward_only=True)
    assert sorted(outputs.logprobs) == list(range(len(datums)))
    for index, datum in enumerate(datums):
        alone = accumulate(learner, [datum], "ppo", forward_only=True)
        assert alone.logprobs[0].shape == datum.targets.shape
        torch.testing.assert_close(outputs.logprobs[index], alone.logprobs[0], rtol=0, atol=EXACT)
        torch.testing.assert_close(backwards.logprobs[len(datums) - 1 - index], alone.logprobs[0], rtol=0, atol=EXACT)


def test_calls_of_different_losses_add_up(learner: Learner) -> None:
    ce, ppo, other = call_datums("cross_entropy"), call_datums("ppo"), call_datums("cross_entropy", seed=5)
    parts = gradient_of(learner, (ce, "cross_entropy")) + gradient_of(learner, (ppo, "ppo"))
    assert_same(gradient_of(learner, (ce, "cross_entropy"), (ppo, "ppo")), parts)
    one_call = gradient_of(learner, ([*ce, *other], "cross_entropy"))
    assert_same(gradient_of(learner, (ce, "cross_entropy"), (other, "cross_entropy")), one_call)


def test_sums_of_shares_are_those_of_the_call(learner: Learner) -> None:
    datums = call_datums("ppo")
    rows = pack_datums(datums, 40, True)
    assert len(rows) > 2
    shares = [learner.accumulate(own, "ppo", OPTIONS["ppo"], True) for own in (rows[:2], rows[2:], [])]
    joined, whole = DatumOutputs.joined(shares), accumulate(learner, datums, "ppo", forward_only=True)
    assert shares[2] == DatumOutputs({}, {})
    assert list(joined.logprobs) == list(range(len(datums)))
    assert joined.sums == pytest.approx(whole.sums, rel=EXACT)
    assert joined.sums["tokens"] == sum(int((datum.values["advantages"] != 0).sum()) for datum in datums)


# Targets


def distillation(num_targets: int, seed: int = 3) -> list[Datum]:
    """Return datums with several targets of each position. Some weights are 0, and every third target repeats one."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for datum in call_datums("cross_entropy"):
        shape = (datum.num_tokens, num_targets)
        targets = torch.randint(0, VOCABULARY, shape, generator=generator)
        targets[:, 2::3] = targets[:, :1]
        weights = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.6)
        weights[: datum.num_tokens // 2] = 0
        found.append(Datum(datum.token_ids, targets, {"weights": weights}))
    return found


def test_several_targets_of_a_position(learner: Learner, plain: PlainModel) -> None:
    """Some datums have one target per position and no weights."""
    several, [single, *_] = distillation(5), call_datums("cross_entropy", seed=4)
    datums = [*several[:3], Datum(single.token_ids, single.targets, {}), *distillation(2)[3:]]
    outputs = accumulate(learner, datums, "cross_entropy")
    found = gradient(learner)
    learner.discard_gradient()
    loss, expected = plain.gradient(datums, "cross_entropy", {})
    assert_same(found, expected)
    assert outputs.sums["loss"] == pytest.approx(loss, rel=EXACT)
    for index, datum in enumerate(datums):
        torch.testing.assert_close(outputs.logprobs[index].double(), plain.logprobs(datum), rtol=0, atol=EXACT)


def test_a_target_may_be_any_token_also_after_the_last_one(learner: Learner, plain: PlainModel) -> None:
    datum = call_datums("cross_entropy")[0]
    targets = (datum.targets + 17) % VOCABULARY
    shifted = Datum(datum.token_ids, targets, {"weights": torch.arange(datum.num_tokens).float()})
    accumulate(learner, [shifted], "cross_entropy")
    found = gradient(learner)
    learner.discard_gradient()
    assert_same(found, plain.gradient([shifted], "cross_entropy", {})[1])


def test_a_datum_has_its_own_thresholds_and_others_those_of_the_call(learner: Learner, plain: PlainModel) -> None:
    datums = call_datums("ppo")
    own = {"clip_low_threshold": torch.full((datums[1].num_tokens,), 0.98)}
    datums[1] = Datum(datums[1].token_ids, datums[1].targets, {**datums[1].values, **own})
    accumulate(learner, datums, "ppo")
    found = gradient(learner)
    learner.discard_gradient()
    assert_same(found, plain.gradient(datums, "ppo", OPTIONS["ppo"])[1])


# Masked positions


@pytest.mark.parametrize("loss", [loss for loss in OPTIONS if loss != "cross_entropy"])
def test_logprobs_of_masked_positions_may_be_unknown(learner: Learner, loss: str) -> None:
    datums = call_datums(loss)

    def unknown(datum: Datum) -> Datum:
        is_counted = (datum.values["advantages"] != 0) | (datum.values.get("sequence_ratio_mask", torch.zeros(1)) != 0)
        logprobs = torch.where(is_counted, datum.values["logprobs"], float("nan"))
        return Datum(datum.token_ids, datum.targets, {**datum.values, "logprobs": logprobs})

    known = gradient_of(learner, (datums, loss))
    assert torch.equal(gradient_of(learner, ([unknown(datum) for datum in datums], loss)), known)


def test_padding_adds_nothing(learner: Learner) -> None:
    datums = call_datums("cross_entropy")

    def padded(values: Tensor, number: int = 9) -> Tensor:
        return torch.cat([values, values.new_zeros(number)])

    longer = [
        Datum(padded(d.token_ids), padded(d.targets), {name: padded(v) for name, v in d.values.items()}) for d in datums
    ]
    assert_same(gradient_of(learner, (longer, "cross_entropy")), gradient_of(learner, (datums, "cross_entropy")))


def test_a_call_in_which_nothing_counts_has_logprobs_and_no_gradient(learner: Learner) -> None:
    datums = [Datum(d.token_ids, d.targets, {"weights": torch.zeros(d.num_tokens)}) for d in call_datums("dro")]
    outputs = accumulate(learner, datums, "cross_entropy")
    assert not gradient(learner).any()
    assert learner.has_gradient
    assert outputs.sums == {"loss": 0, "weight": 0}
    assert all((own < 0).all() for own in outputs.logprobs.values())
    learner.discard_gradient()


# State


def test_forward_only_touches_nothing(learner: Learner) -> None:
    datums, state = call_datums("cispo"), learner.state()
    accumulate(learner, datums, "cispo")
    before = gradient(learner)
    outputs = accumulate(learner, datums, "cispo", forward_only=True)
    assert torch.equal(gradient(learner), before)
    learner.discard_gradient()
    accumulate(learner, datums, "cispo", forward_only=True)
    assert not learner.has_gradient
    assert not gradient(learner).any()
    assert all(torch.equal(tensor, state.adapter[name]) for name, tensor in learner.state().adapter.items())
    assert outputs.sums == accumulate(learner, datums, "cispo").sums
    learner.discard_gradient()


def test_another_training_between_two_calls_changes_no_bit(qwen3_path: Path) -> None:
    learner = Learner(Policy.load(qwen3_path, "cpu"))
    randomise_adapter(learner.policy)
    first, second, third = (call_datums("ppo", seed=seed) for seed in range(3))
    start = learner.state()

    def train(disturb: Callable[[], None]) -> LearnerState:
        learner.load_state(start)
        for datums in (first, second, third):
            accumulate(learner, datums, "ppo")
            disturb()
            accumulate(learner, datums, "ppo")
            disturb()
            assert learner.has_gradient
            learner.apply_adam(AdamStep(learning_rate=1e-3, weight_decay=0.1))
            disturb()
            assert not learner.has_gradient
        return learner.state()

    def other() -> None:
        suspended = learner.suspend()
        learner.load_state(LearnerState(initial_adapter(qwen3_path, OTHER), lora=OTHER))
        assert not learner.has_gradient
        accumulate(learner, second, "ppo")
        learner.apply_adam(AdamStep(learning_rate=1e-2))
        accumulate(learner, first, "ppo")
        learner.resume(suspended)

    alone, beside = train(lambda: None), train(other)
    for ours, theirs in ((alone.adapter, beside.adapter), (alone.optimizer, beside.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_version_that_is_loaded_has_no_gradient(learner: Learner) -> None:
    state = learner.state()
    accumulate(learner, call_datums("ppo"), "ppo")
    learner.load_state(state)
    assert not learner.has_gradient
    assert not gradient(learner).any()


def test_a_failed_call_leaves_the_gradient_of_those_before(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    datums = call_datums("ppo")
    expected = gradient_of(learner, (datums, "ppo"))
    accumulate(learner, datums, "ppo")
    compute, rows = learner.policy.target_logprobs, iter(range(9))

    def break_at_the_second(*args: Any) -> Tensor:
        if next(rows) == 1:
            raise ValueError("broken")
        return compute(*args)

    monkeypatch.setattr(learner.policy, "target_logprobs", break_at_the_second)
    with pytest.raises(ValueError, match="broken"):
        accumulate(learner, datums, "ppo", packed_length=60)
    assert next(rows) == 2
    assert torch.equal(gradient(learner), expected)
    assert learner.progress.position.work == ""
    learner.discard_gradient()


# Memory


def test_rows_that_do_not_fit_into_memory_are_split(qwen3_path: Path) -> None:
    learner, datums = new_learner(qwen3_path), call_datums("ppo")
    expected = gradient_of(learner, (datums, "ppo"), (datums, "ppo"))
    policy = fail_above(learner, 50)
    assert_same(gradient_of(learner, (datums, "ppo"), (datums, "ppo")), expected)
    assert policy.num_failures == 1  # the length is remembered
    assert_same(gradient_of(learner, (datums[::-1], "ppo"), (datums, "ppo")), expected)
    assert policy.num_failures == 1


def test_a_single_datum_that_does_not_fit_is_named(qwen3_path: Path) -> None:
    learner, datums = new_learner(qwen3_path), call_datums("ppo")
    accumulate(learner, datums, "ppo")
    before = gradient(learner)
    fail_above(learner, 40)
    with pytest.raises(DatumError, match=r"data\[1\]: has 44 tokens, .*tried to allocate") as caught:
        accumulate(learner, datums, "ppo")
    assert caught.value.place == ("data", 1)
    assert torch.equal(gradient(learner), before)
    assert learner.has_gradient
    accumulate(learner, datums, "ppo", forward_only=True)  # needs less
    learner.discard_gradient()
    with pytest.raises(DatumError, match=r"data\[0\]: has 44 tokens"):
        accumulate(learner, [datums[1], datums[5]], "ppo")  # the second one begins the first


# Models


def test_datums_of_a_model_with_recurrent_layers(tmp_path: Path) -> None:
    path = save(family("qwen3_5_text", **LINEAR), tmp_path)
    policy = Policy.load(path, "cpu", lora=LoraSettings(r=4, target_modules=("q_proj", "up_proj")))
    randomise_adapter(policy)
    learner, datums = Learner(policy), call_datums("ppo")
    assert all(row.row.segment_ids.unique().numel() == len(row.datums) for row in pack_datums(datums, 100, False))
    together = gradient_of(learner, (datums, "ppo"))
    assert_same(gradient_of(learner, (datums, "ppo"), packed_length=1), together)
    assert_same(together, PlainModel(path, policy).gradient(datums, "ppo", OPTIONS["ppo"])[1], 1e-4)


def test_few_places_of_a_long_row(learner: Learner) -> None:
    """The last layer is computed at these places alone."""
    ids = torch.randint(0, VOCABULARY, (300,), generator=torch.Generator().manual_seed(0))
    places, targets = torch.tensor([250, 7, 250, 299]), torch.tensor([3, 4, 5, 6])
    assert learner.policy.prunes_last_layer

    def computed(places: Tensor, targets: Tensor) -> Tensor:
        return learner.policy.target_logprobs(one_segment(ids), places, targets, torch.ones(len(places)).bool())

    every = computed(torch.cat([torch.arange(300), places]), torch.cat([ids, targets]))[300:]
    torch.testing.assert_close(computed(places, targets), every, rtol=0, atol=EXACT)
