"""Optimizer steps of datums: those of torch.optim.AdamW with the numbers of each step, alone and on two learners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from plain_losses import OPTIONS, call_datums
from ranks import run_ranks
from small_models import packed_group, randomise_adapter
from torch import Tensor, nn

from tandem.rl.checkpoints import LearnerState, read_checkpoint, write_checkpoint
from tandem.rl.config import LossConfig
from tandem.rl.datums.datum import Datum
from tandem.rl.datums.rows import DatumRow, pack_datums
from tandem.rl.errors import StepError
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy
from tandem.rl.settings import AdamStep

STEPS = [
    AdamStep(learning_rate=1e-2, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1),
    AdamStep(learning_rate=3e-3, grad_clip_norm=0.05, eps=1e-4),
    AdamStep(learning_rate=0.0, beta1=0.5, eps=1e-4),
    AdamStep(learning_rate=1e-3, weight_decay=2.0, eps=1e-4, grad_clip_norm=1e9),
    AdamStep(learning_rate=5e-3, beta2=0.999, eps=1e-4),
]


def new_learner(path: Path) -> Learner:
    policy = Policy.load(path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


@pytest.fixture
def learner(qwen3_path: Path) -> Learner:
    return new_learner(qwen3_path)


def rows_of(seed: int, packed_length: int = 60) -> list[DatumRow]:
    return pack_datums(call_datums("ppo", seed=seed), packed_length, True)


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in learner.policy.parameters.items()}


def assert_same(found: LearnerState, expected: LearnerState, tolerance: float = 0.0) -> None:
    for ours, theirs in ((found.adapter, expected.adapter), (found.optimizer, expected.optimizer)):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


def test_steps_are_those_of_torch(learner: Learner) -> None:
    """The third call is missing: that step has a gradient of zero, and moments that decay."""
    plain = {name: nn.Parameter(value.clone()) for name, value in learner.state().adapter.items()}
    adamw = torch.optim.AdamW(plain.values())
    for number, step in enumerate(STEPS):
        if number != 3:
            learner.accumulate(rows_of(number), "ppo", OPTIONS["ppo"])
        for name, gradient in gradients(learner).items():
            plain[name].grad = gradient
        norm = nn.utils.clip_grad_norm_(plain.values(), step.grad_clip_norm or float("inf"))
        adamw.param_groups[0].update(
            lr=step.learning_rate, betas=(step.beta1, step.beta2), eps=step.eps, weight_decay=step.weight_decay
        )
        adamw.step()
        metrics = learner.apply_adam(step)
        assert metrics == {
            "grad_norm": pytest.approx(float(norm), rel=1e-6),
            "lr": step.learning_rate,
            "optimizer_step": number + 1,
        }
        state = learner.state()
        for name, parameter in plain.items():
            torch.testing.assert_close(state.adapter[name], parameter.detach(), rtol=1e-6, atol=1e-8)
            for key in ("exp_avg", "exp_avg_sq", "step"):
                torch.testing.assert_close(
                    state.optimizer[f"{name}.{key}"], adamw.state[parameter][key], rtol=1e-5, atol=1e-9
                )
        assert number != 1 or metrics["grad_norm"] > step.grad_clip_norm  # it acted


def test_a_first_step_by_hand(learner: Learner) -> None:
    """The first update is lr g / (|g| + eps) after decay by 1 - lr * weight_decay."""
    before = learner.state().adapter
    learner.accumulate(rows_of(0), "ppo", OPTIONS["ppo"])
    summed = gradients(learner)
    learner.apply_adam(AdamStep(learning_rate=1e-2, eps=1e-3, weight_decay=0.5))
    for name, after in learner.state().adapter.items():
        g = summed[name]
        expected = before[name] * (1 - 1e-2 * 0.5) - 1e-2 * g / (g.abs() + 1e-3)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-6)
    assert not any(gradient.any() for gradient in gradients(learner).values())


def test_learning_rate_zero_moves_nothing(learner: Learner) -> None:
    before = learner.state().adapter
    learner.accumulate(rows_of(0), "ppo", OPTIONS["ppo"])
    learner.apply_adam(AdamStep(learning_rate=0.0, weight_decay=1.0))
    after = learner.state()
    assert all(torch.equal(after.adapter[name], before[name]) for name in before)
    assert any(moment.any() for name, moment in after.optimizer.items() if name.endswith("exp_avg"))


def test_a_first_step_without_a_gradient_moves_nothing(learner: Learner) -> None:
    before = learner.state().adapter
    assert learner.apply_adam(AdamStep(learning_rate=1e-2))["grad_norm"] == 0
    after = learner.state()
    assert all(torch.equal(after.adapter[name], before[name]) for name in before)
    assert {float(value) for name, value in after.optimizer.items() if name.endswith(".step")} == {1.0}


@pytest.mark.parametrize("bad", [1e30, float("inf")])
def test_a_gradient_that_is_not_finite_is_discarded_and_changes_nothing(learner: Learner, bad: float) -> None:
    learner.accumulate(rows_of(1), "ppo", OPTIONS["ppo"])
    learner.apply_adam(AdamStep(learning_rate=1e-3))
    before = learner.state()
    [datum, *_] = call_datums("importance_sampling")
    broken = Datum(datum.token_ids, datum.targets, datum.values | {"logprobs": torch.full((datum.num_tokens,), -bad)})
    learner.accumulate(pack_datums([broken], 100, True), "importance_sampling", {})
    with pytest.raises(StepError, match="optimizer step 2 wasn't taken"):
        learner.apply_adam(AdamStep(learning_rate=1e-3))
    assert_same(learner.state(), before)
    assert not learner.has_gradient
    assert not any(gradient.any() for gradient in gradients(learner).values())
    learner.accumulate(rows_of(1), "ppo", OPTIONS["ppo"])
    learner.apply_adam(AdamStep(learning_rate=1e-3))


def test_a_large_gradient_may_be_clipped(learner: Learner) -> None:
    """Its squares overflow float32."""
    [datum, *_] = call_datums("cross_entropy")
    heavy = Datum(datum.token_ids, datum.targets, {"weights": torch.full((datum.num_tokens,), 1e25)})
    learner.accumulate(pack_datums([heavy], 100, True), "cross_entropy", {})
    metrics = learner.apply_adam(AdamStep(learning_rate=1e-3, grad_clip_norm=1.0))
    assert metrics["grad_norm"] > 1e24
    moments = [value for name, value in learner.state().optimizer.items() if name.endswith("exp_avg")]
    assert torch.cat([moment.flatten() for moment in moments]).norm() == pytest.approx(0.1, rel=1e-4)


def test_a_state_that_a_step_destroyed_names_the_step(learner: Learner) -> None:
    for _ in range(2):
        learner.accumulate(rows_of(0), "ppo", OPTIONS["ppo"])
        learner.apply_adam(AdamStep(learning_rate=1e3))
    next(iter(learner.policy.parameters.values())).data.fill_(float("inf"))
    with pytest.raises(StepError, match=r"isn't finite after step 2 \(learning rate 1000, gradient norm"):
        learner.check_finite()


def test_training_continues_from_a_checkpoint_bit_for_bit(learner: Learner, tmp_path: Path) -> None:
    learner.accumulate(rows_of(0), "ppo", OPTIONS["ppo"])
    learner.apply_adam(STEPS[0])
    saved = write_checkpoint(tmp_path, learner.state(), learner.policy.adapter_config(), {})

    def continued() -> LearnerState:
        learner.accumulate(rows_of(1), "ppo", OPTIONS["ppo"])
        assert learner.apply_adam(STEPS[1])["optimizer_step"] == 2
        return learner.state()

    first = continued()
    learner.load_state(read_checkpoint(saved.path))
    assert_same(continued(), first)


def test_a_training_job_on_the_same_learner_keeps_its_own_settings(learner: Learner) -> None:
    start = learner.state()

    def job() -> LearnerState:
        learner.load_state(start)
        learner.step([packed_group(11, [9, 14])], LossConfig(), 1e-3)
        return learner.state()

    before = job()
    learner.accumulate(rows_of(0), "ppo", OPTIONS["ppo"])
    learner.apply_adam(STEPS[0])
    assert_same(job(), before)


# Several learners


def scenarios() -> dict[str, list[tuple[AdamStep, Sequence[Sequence[DatumRow]]]]]:
    """Return steps by name, with the rows of each learner: two or one call of each step, shared or not."""
    first, second = rows_of(0, 40), rows_of(1, 40)
    assert len(first) > 2
    return {
        "uneven": [(STEPS[0], (first[:1], first[1:])), (STEPS[1], (second[1:], second[:1]))],
        "a learner without rows": [(STEPS[0], (first, [])), (STEPS[3], ([], second))],
        "no rows at all": [(STEPS[0], (first, [])), (STEPS[4], ([], []))],
    }


def train(learner: Learner, start: LearnerState, steps: list[tuple[AdamStep, Sequence[DatumRow]]]) -> dict[str, Any]:
    learner.load_state(start)
    outputs, metrics = [], []
    for step, rows in steps:
        outputs.append(learner.accumulate(rows, "ppo", OPTIONS["ppo"]))
        outputs.append(learner.accumulate(rows, "ppo", OPTIONS["ppo"], forward_only=True))
        metrics.append(learner.apply_adam(step))
    return {"state": learner.state(), "metrics": metrics, "outputs": outputs}


def one_rank(rank: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = new_learner(path)
    start = learner.state()
    found: dict[str, Any] = {
        name: train(learner, start, [(step, rows[rank]) for step, rows in steps]) for name, steps in scenarios().items()
    }
    learner.load_state(start)
    rows = rows_of(0)
    rows[0].values["advantages"][:] = 1.0
    rows[0].values["logprobs"][:] = -1e30
    learner.accumulate(rows[:1] if rank == 1 else rows[1:], "importance_sampling", {})
    try:
        learner.apply_adam(STEPS[0])
    except StepError as error:
        found["broken on one"] = str(error)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_learners_equal_one(qwen3_path: Path, tmp_path: Path) -> None:
    run_ranks(one_rank, (qwen3_path, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    learner = new_learner(qwen3_path)
    start = learner.state()
    for name, steps in scenarios().items():
        alone = train(learner, start, [(step, [*rows[0], *rows[1]]) for step, rows in steps])
        assert_same(first[name]["state"], second[name]["state"])
        assert_same(first[name]["state"], alone["state"], tolerance=1e-5)
        assert first[name]["metrics"] == second[name]["metrics"]
        for ours, theirs in zip(first[name]["metrics"], alone["metrics"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)
        for ours, others, together in zip(
            *(x[name]["outputs"] for x in (first, second)), alone["outputs"], strict=True
        ):
            assert ours.logprobs.keys() | others.logprobs.keys() == together.logprobs.keys()
    assert "isn't finite" in first["broken on one"]
    assert first["broken on one"] == second["broken on one"]
