"""Gradient steps: independent of packing, splitting and distribution, and resumed bit for bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from small_models import joined, packed_group, randomise_adapter, unpacked, with_reference
from trees import branching_group

from tandem.rl.checkpoints import LearnerState, read_checkpoint, write_checkpoint
from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner, StepError
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.policy import Policy, PolicyError, initial_adapter
from tandem.rl.settings import LoraSettings, OptimizerSettings

NAN = float("nan")
PPO = LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.3)
KL = LossConfig(kl_coef=0.2, kl_source="current_learner")
UNCLIPPED = OptimizerSettings(max_grad_norm=1e9)


def new_learner(path: Path, settings: OptimizerSettings | None = None) -> Learner:
    policy = Policy.load(path, "cpu")
    randomise_adapter(policy)
    return Learner(policy, settings)


@pytest.fixture
def learner(qwen3_path: Path) -> Learner:
    return new_learner(qwen3_path)


def gradient(learner: Learner) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in learner.policy.parameters.values()]).clone()


def gradient_of(learner: Learner, loss: LossConfig, *calls: Sequence[PackedSequence]) -> torch.Tensor:
    """Return the summed gradient of a step, and discard the step."""
    state = learner.state()
    for sequences in calls:
        learner.forward_backward(sequences, loss, logprob_chunk_size=5)
    result = gradient(learner)
    learner.load_state(state)
    assert not gradient(learner).any()
    return result


def assert_same_state(actual: LearnerState, expected: LearnerState, tolerance: float = 0.0) -> None:
    for ours, theirs in ((actual.adapter, expected.adapter), (actual.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert (ours[name] - theirs[name]).abs().max() <= tolerance, name


# Gradients don't depend on packing or splitting


@pytest.mark.parametrize(
    "loss",
    [
        LossConfig(),
        PPO,
        replace(PPO, importance_sampling_level="sequence", kimi_k2_tau=0.1),
        LossConfig(importance_sampling_level="average", truncated_importance_sampling=1.5),
    ],
    ids=["cispo", "ppo", "sequence", "average"],
)
@pytest.mark.parametrize("prompt_length", [11, 0])
def test_packed_gradients_are_the_unpacked_ones(learner: Learner, loss: LossConfig, prompt_length: int) -> None:
    row = packed_group(prompt_length, [9, 14, 7])
    rows = unpacked(row)
    together, apart = gradient_of(learner, loss, [row]), gradient_of(learner, loss, rows)
    assert len(rows) == 3
    assert (together - apart).abs().max() < 1e-5 * together.abs().max()


def test_a_step_may_be_split_over_calls(learner: Learner) -> None:
    rows = [packed_group(11, [9, 14], seed=1), packed_group(6, [5, 8], seed=2)]
    torch.testing.assert_close(
        gradient_of(learner, PPO, [rows[0]], [rows[1]], []), gradient_of(learner, PPO, rows), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("kl_source", ["current_learner", "sample"])
def test_kl_mean_is_over_the_whole_step(learner: Learner, kl_source: str) -> None:
    loss = replace(KL, kl_source=kl_source)
    rows = [with_reference(packed_group(11, [9, 14], seed=1)), with_reference(packed_group(0, [5, 8], seed=2), seed=6)]
    apart = gradient_of(learner, loss, rows)
    torch.testing.assert_close(apart, gradient_of(learner, loss, [joined(*rows)]), rtol=0, atol=1e-5)
    separately = gradient_of(learner, loss, [rows[0]]) + gradient_of(learner, loss, [rows[1]])
    assert (apart - separately).abs().max() > 1e-3


def test_kl_costs_a_second_forward_only_where_it_must(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    row = with_reference(packed_group(11, [9, 14]))
    known = replace(row, sampling_logprobs=row.sampling_logprobs.nan_to_num(-3.0))
    forward, calls = learner.policy.logprobs, []
    monkeypatch.setattr(learner.policy, "logprobs", lambda *args, **kw: calls.append(0) or forward(*args, **kw))

    def forwards(rows: list[PackedSequence], loss: LossConfig) -> int:
        calls.clear()
        gradient_of(learner, loss, rows)
        return len(calls)

    sample = replace(KL, kl_source="sample")
    assert forwards([row, row], LossConfig()) == 2
    assert forwards([row], KL) == 1
    assert forwards([row, row], KL) == 4
    assert forwards([known, known], sample) == 2
    assert forwards([known, row], sample) == 3


def test_kl_needs_references_and_a_single_call(learner: Learner) -> None:
    row = with_reference(packed_group(11, [9, 14]))
    with pytest.raises(ValueError, match="needs a reference logprob"):
        learner.forward_backward([packed_group(11, [9, 14])], KL)
    with pytest.raises(ValueError, match="needs a reference logprob"):
        learner.forward_backward([replace(row, ref_logprobs=row.ref_logprobs.roll(1))], KL)
    learner.forward_backward([row], KL)
    with pytest.raises(ValueError, match="to one forward_backward"):
        learner.forward_backward([row], KL)


# Old logprobs


def test_score_is_the_policys_logprobs_per_token(learner: Learner) -> None:
    rows = [packed_group(11, [9, 14]), packed_group(0, [5, 8])]
    for row, scores in zip(rows, learner.score(rows, chunk_size=7), strict=True):
        predicted, _ = learner.policy.logprobs(row)
        # On some processors, the chunk size changes the order of summation.
        torch.testing.assert_close(scores[1:], predicted[:-1], rtol=0, atol=1e-5, equal_nan=True)
        assert not scores.requires_grad
        starts = row.segment_ids != row.segment_ids.roll(1)
        assert torch.equal(scores.isnan(), starts)


def test_missing_old_logprobs_are_the_policys_own(learner: Learner) -> None:
    """Unknown sampling logprobs, and old logprobs scored under this very policy, both mean a ratio of one."""
    row = packed_group(11, [9, 14])
    (scores,) = learner.score([row])
    unknown = replace(row, sampling_logprobs=torch.full_like(row.sampling_logprobs, NAN))
    recomputed = replace(row, old_logprobs=scores)
    missing = gradient_of(learner, PPO, [unknown])
    torch.testing.assert_close(gradient_of(learner, PPO, [recomputed]), missing, rtol=0, atol=1e-4)
    drifted = replace(row, old_logprobs=scores - 1.0)
    assert (gradient_of(learner, PPO, [drifted]) - missing).abs().max() > 1e-3


# The optimizer step


def test_a_first_step_by_hand(qwen3_path: Path) -> None:
    """AdamW's first update is lr g / (|g| + eps) after decay by 1 - lr * weight_decay; g is the clipped mean."""
    learner = new_learner(qwen3_path, OptimizerSettings(max_grad_norm=0.05, weight_decay=0.5, eps=1e-6))
    row = packed_group(11, [9, 14])
    before = learner.state().adapter
    learner.forward_backward([row], LossConfig())
    summed = {name: parameter.grad.clone() for name, parameter in learner.policy.parameters.items()}
    metrics = learner.optim_step(1e-2)

    norm = math.sqrt(sum(float(g.double().square().sum()) for g in summed.values())) / row.num_trained_tokens
    assert norm > 0.05
    assert metrics["loss/grad_norm"] == pytest.approx(norm, rel=1e-5)
    state = learner.state()
    for name, g in summed.items():
        g = g / row.num_trained_tokens * (0.05 / norm)
        expected = before[name] * (1 - 1e-2 * 0.5) - 1e-2 * g / (g.abs() + 1e-6)
        torch.testing.assert_close(state.adapter[name], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(state.optimizer[f"{name}.exp_avg"], 0.1 * g, rtol=1e-4, atol=1e-9)
        assert state.optimizer[f"{name}.step"].item() == 1
    assert not gradient(learner).any()


def test_a_copy_in_the_background_is_of_the_version_before_the_next_step(learner: Learner) -> None:
    before, copied = learner.state(), learner.state_in_background()
    learner.forward_backward([packed_group(11, [9, 14])], LossConfig())
    learner.optim_step(1e-2)
    assert_same_state(copied(), before)
    assert any(not torch.equal(tensor, before.adapter[name]) for name, tensor in learner.state().adapter.items())


def test_learning_rate_zero_moves_nothing(learner: Learner) -> None:
    before = learner.state().adapter
    learner.forward_backward([packed_group(11, [9, 14])], LossConfig())
    learner.optim_step(0.0)
    after = learner.state().adapter
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_metrics(learner: Learner) -> None:
    row = packed_group(11, [9, 14])
    old = learner.score([row])[0] - math.log(2)
    reference = replace(row, old_logprobs=old, ref_logprobs=old)
    learner.forward_backward([reference], KL)
    metrics = learner.optim_step(1e-3)
    assert metrics.keys() == {
        "loss/train", "loss/grad_norm", "loss/learning_rate", "loss/entropy", "loss/kl_policy_ref", "loss/ratio_mean",
        "loss/clip_fraction", "loss/probs_corr", "data/step_trainer_tokens", "data/step_num_sequences",
    }  # fmt: skip
    assert metrics["loss/ratio_mean"] == pytest.approx(2, rel=1e-5)
    assert metrics["loss/clip_fraction"] == 0
    assert metrics["loss/kl_policy_ref"] == pytest.approx(math.log(2), rel=1e-4)
    assert metrics["loss/probs_corr"] == pytest.approx(1)
    assert metrics["loss/learning_rate"] == 1e-3
    assert metrics["data/step_trainer_tokens"] == row.num_trained_tokens == 19
    assert metrics["data/step_num_sequences"] == 1
    learner.forward_backward([replace(row, old_logprobs=old - math.log(2))], PPO)
    assert learner.optim_step(0.0)["loss/clip_fraction"] > 0.9


def test_fresh_tokens_are_compared_with_their_sampling_logprobs(learner: Learner) -> None:
    """Two fresh tokens differ by 0.25 and 0.75. Stale, unknown and untrained tokens don't count."""
    row = packed_group(5, [6])
    [logprobs] = learner.score([row], 64)
    first, second, stale, unknown = row.loss_mask.nonzero().squeeze(1).tolist()[:4]
    sampling = logprobs.clone()
    sampling[first], sampling[second], sampling[stale], sampling[unknown:] = (
        logprobs[first] - 0.25, logprobs[second] + 0.75, 5.0, NAN,
    )  # fmt: skip
    fresh = torch.ones_like(row.loss_mask)
    fresh[stale] = False
    row = replace(row, sampling_logprobs=sampling)
    learner.forward_backward([replace(row, is_fresh=fresh), row], LossConfig())
    metrics = learner.optim_step(0.0)
    assert metrics["logprobs/sampled_current_abs_diff_mean"] == pytest.approx(0.5, rel=1e-4)
    assert metrics["logprobs/sampled_current_abs_diff_max"] == pytest.approx(0.75, rel=1e-4)
    learner.forward_backward([row], LossConfig())
    assert "logprobs/sampled_current_abs_diff_max" not in learner.optim_step(0.0)


def test_entropy_is_the_weighted_mean_over_trained_tokens(learner: Learner) -> None:
    row = packed_group(11, [9, 14])
    with torch.no_grad():
        _, entropy = learner.policy.logprobs(row, with_entropy=True)
    trained = row.loss_mask.nonzero().squeeze(1)
    expected = (entropy[trained - 1] * row.weights[trained]).sum() / 19
    learner.forward_backward([row], LossConfig())
    assert learner.optim_step(0.0)["loss/entropy"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_step_without_trained_tokens_changes_nothing(learner: Learner) -> None:
    row = packed_group(11, [9, 14])
    learner.forward_backward([row], LossConfig())
    learner.optim_step(1e-3)
    before = learner.state()
    learner.forward_backward([replace(row, loss_mask=torch.zeros_like(row.loss_mask))], PPO)
    metrics = learner.optim_step(1e-3)
    assert_same_state(learner.state(), before)
    assert metrics["data/step_trainer_tokens"] == 0
    assert metrics["data/step_num_sequences"] == 1
    assert "loss/ratio_mean" not in metrics
    learner.forward_backward([], PPO)
    assert learner.optim_step(1e-3)["loss/train"] == 0
    assert_same_state(learner.state(), before)


def test_a_gradient_that_is_not_finite_is_not_applied(learner: Learner) -> None:
    row = packed_group(11, [9, 14])
    before = learner.state()
    learner.forward_backward([replace(row, advantages=row.advantages * float("inf"))], LossConfig())
    with pytest.raises(StepError, match="not finite"):
        learner.optim_step(1e-3)
    assert_same_state(learner.state(), before)
    learner.forward_backward([row], LossConfig())
    assert math.isfinite(learner.optim_step(1e-3)["loss/train"])


@pytest.mark.parametrize("loss", [LossConfig(), PPO], ids=["cispo", "ppo"])
def test_steps_make_rewarded_completions_likelier(qwen3_path: Path, loss: LossConfig) -> None:
    learner = new_learner(qwen3_path)
    row = packed_group(11, [9, 14])
    good = row.loss_mask & (row.segment_ids == 1)
    bad = row.loss_mask & (row.segment_ids == 2)
    (before,) = learner.score([row])
    row = replace(row, advantages=good.float() - bad.float(), weights=torch.ones_like(row.weights))
    for _ in range(3):
        learner.forward_backward([replace(row, old_logprobs=learner.score([row])[0])], loss)
        learner.optim_step(1e-3)
    (after,) = learner.score([row])
    assert after[good].mean() > before[good].mean() + 0.05
    assert after[bad].mean() < before[bad].mean() - 0.05


# State


def test_a_restored_learner_continues_bit_for_bit(qwen3_path: Path, tmp_path: Path) -> None:
    rows = [packed_group(11, [9, 14], seed=seed) for seed in range(3)]
    learner = new_learner(qwen3_path)
    states = [learner.state()]
    for row in rows:
        learner.forward_backward([row], PPO)
        learner.optim_step(1e-3)
        states.append(learner.state())
    assert states[0].optimizer == {}
    assert len(states[1].optimizer) == 3 * len(states[1].adapter)

    other = Learner(Policy.load(qwen3_path, "cpu"))
    for step in (1, 0, 2):  # out of order: remains of another version must have no effect
        checkpoint = write_checkpoint(tmp_path, states[step], other.policy.adapter_config(), {"step": step})
        other.load_state(read_checkpoint(checkpoint.path))
        assert_same_state(other.state(), states[step])
        other.forward_backward([rows[step]], PPO)
        other.optim_step(1e-3)
        assert_same_state(other.state(), states[step + 1])


def test_a_state_is_a_copy(learner: Learner) -> None:
    learner.forward_backward([packed_group(11, [9, 14])], LossConfig())
    learner.optim_step(1e-3)
    state = learner.state()
    for tensor in (*state.adapter.values(), *state.optimizer.values()):
        tensor.zero_()
    again = learner.state()
    assert all(tensor.any() for tensor in (*again.adapter.values(), *again.optimizer.values()))
    learner.load_state(again)
    next(iter(again.optimizer.values())).zero_()
    assert all(tensor.any() for tensor in learner.state().optimizer.values())


def test_a_state_that_does_not_fit_is_refused_whole(learner: Learner, qwen3_path: Path) -> None:
    before = learner.state()
    with pytest.raises(PolicyError, match="The adapter does not fit"):
        learner.load_state(LearnerState(initial_adapter(qwen3_path, LoraSettings(r=4))))
    fresh = initial_adapter(qwen3_path, LoraSettings())
    with pytest.raises(PolicyError, match="The optimizer state does not fit"):
        learner.load_state(LearnerState(fresh, {"something.exp_avg": torch.zeros(1)}))
    assert_same_state(learner.state(), before)


# Several learners


def two_learner_scenarios() -> dict[str, tuple[LossConfig, list[list[list[PackedSequence]]]]]:
    """Return scenarios by name: a loss, and for each gradient step the sequences of each rank."""
    a, b, c = (with_reference(packed_group(11, [9, 14 + seed], seed=seed), seed=seed) for seed in range(3))
    forest = [with_reference(row) for row in pack(branching_group(seed=0), 40, min_gain=1)]
    assert len(forest) == 2 and all(row.repeats.indices.numel() for row in forest)
    return {
        "uneven": (PPO, [[[a, b], [c]], [[c], [a, b]]]),
        "a rank without a sequence": (LossConfig(), [[[a], []], [[], [b]]]),
        "kl": (KL, [[[a], [b]], [[c, a], []]]),
        "kl of the sample": (replace(KL, kl_source="sample"), [[[a], [b, c]]]),
        "a forest": (KL, [[[forest[0]], [forest[1], a]]]),
        "nothing at all": (KL, [[[], []]]),
    }


def run_steps(
    learner: Learner, start: LearnerState, loss: LossConfig, steps: list[list[PackedSequence]]
) -> dict[str, Any]:
    learner.load_state(start)
    metrics = []
    for sequences in steps:
        learner.forward_backward(sequences, loss)
        metrics.append(learner.optim_step(1e-4))
    return {"state": learner.state(), "metrics": metrics}


def one_rank(rank: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = new_learner(path, UNCLIPPED)
    start = learner.state()
    results = {
        name: run_steps(learner, start, loss, [ranks[rank] for ranks in steps])
        for name, (loss, steps) in two_learner_scenarios().items()
    }
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_learners_equal_one(qwen3_path: Path, tmp_path: Path) -> None:
    run_ranks(one_rank, (qwen3_path, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    learner = new_learner(qwen3_path, UNCLIPPED)
    start = learner.state()
    for name, (loss, steps) in two_learner_scenarios().items():
        alone = run_steps(learner, start, loss, [[*ranks[0], *ranks[1]] for ranks in steps])
        assert_same_state(first[name]["state"], second[name]["state"])
        assert first[name]["metrics"] == second[name]["metrics"]
        # A first moment is a tenth of the gradient, so gradients agree to 1e-5.
        assert_same_state(first[name]["state"], alone["state"], tolerance=1e-6)
        for distributed, single in zip(first[name]["metrics"], alone["metrics"], strict=True):
            assert distributed == pytest.approx(single, abs=1e-5)
    assert first["kl"]["metrics"][0]["loss/kl_policy_ref"] != 0
    assert first["nothing at all"]["state"].optimizer == {}
