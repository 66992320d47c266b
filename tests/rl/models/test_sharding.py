"""Learners that hold the base weights together compute what one learner with all of them computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from model_families import FULL, LINEAR, WINDOWED, adapted, family, save
from plain_losses import call_datums
from ranks import run_ranks
from small_models import packed_group, randomise_adapter, save_model, with_reference
from torch import Tensor
from torch.distributed.tensor import DTensor

from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import LossConfig
from tandem.rl.datums.rows import DatumRow, pack_datums
from tandem.rl.datums.training import DatumOutputs
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.settings import AdamStep, LoraSettings, OptimizerSettings

SHARD, REPLICAS = 2, 2
UNCLIPPED = OptimizerSettings(max_grad_norm=1e9)
LAYERS = 3
FAMILIES = {
    "experts": FULL["qwen3_moe"],
    "adapted experts": FULL["qwen3_moe"],
    "recurrent layers": family("qwen3_5_text", **LINEAR),
    "an image encoder beside it": WINDOWED["gemma3"],
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with uneven parts: 2 learners share 65 rows of some of its matrices."""
    path = tmp_path_factory.mktemp("model")
    return save_model(path, num_hidden_layers=LAYERS, intermediate_size=65, tie_word_embeddings=False)


def rows() -> list[PackedSequence]:
    return [with_reference(packed_group(prompt, [9, 14], seed), seed) for seed, prompt in enumerate((11, 150, 6, 0, 7))]


def steps() -> list[tuple[LossConfig, list[list[PackedSequence]]]]:
    """Return the losses of gradient steps, and the rows of each of four learners: unequal, and none."""
    a, b, c, d, e = rows()
    known = [replace(row, sampling_logprobs=row.sampling_logprobs.nan_to_num(-3.0)) for row in (a, b)]
    return [
        (LossConfig(), [[a, b], [c], [], [d, e]]),
        (LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.3), [[], [], [], [a]]),
        (LossConfig(kl_coef=0.2, kl_source="current_learner"), [[a], [], [b, c], []]),
        (LossConfig(kl_coef=0.2, kl_source="sample"), [[known[0], c], [known[1]], [], [known[0]]]),
        (LossConfig(), [[], [], [], []]),
    ]


def learner(path: Path, group: Any = None, checkpoints: bool | None = None) -> Learner:
    policy = Policy.load(path, "cpu", shard_group=group, gradient_checkpointing=checkpoints)
    randomise_adapter(policy)
    return Learner(policy, UNCLIPPED)


def layer_bytes(learner: Learner) -> tuple[int, int]:
    """Return the bytes of the layers' frozen matrices, as they are in this process and as they would be whole."""
    weights = [w for n, w in learner.policy._decoder.named_parameters() if "layers." in n and not w.requires_grad]
    matrices = [weight for weight in weights if weight.dim() > 1]
    assert len(matrices) == 7 * LAYERS
    held = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in matrices]
    return sum(part.untyped_storage().nbytes() for part in held), sum(w.numel() * w.element_size() for w in matrices)


def policy_of(name: str, path: Path, group: Any = None) -> Policy:
    lora = LoraSettings(r=2, target_modules=("experts",)) if name == "adapted experts" else adapted(FAMILIES[name])
    policy = Policy.load(path, "cpu", lora=lora, shard_group=group, max_length=256)
    randomise_adapter(policy)
    return policy


def train(learner: Learner, shares: list[tuple[LossConfig, list[PackedSequence]]]) -> dict[str, Any]:
    metrics = [learner.step(share, loss, 0.01, logprob_chunk_size=50) for loss, share in shares]
    return {"metrics": metrics, "state": learner.state()}


def train_datums(learner: Learner, shares: list[list[DatumRow]]) -> dict[str, Any]:
    """Train and score datums: this learner's rows of each call, possibly none."""
    learner.load_state(LearnerState(learner.state().adapter))
    outputs = []
    for share in shares:
        outputs.append(learner.accumulate(share, "cross_entropy", {}))
        outputs.append(learner.accumulate(share, "cross_entropy", {}, forward_only=True))
        learner.apply_adam(AdamStep(learning_rate=0.01, eps=1e-4))
    return {"outputs": outputs, "state": learner.state()}


def datum_shares() -> list[list[list[DatumRow]]]:
    """Return the rows of calls, of each of four learners. Nothing counts in the rows of the second call but one."""
    first, second = (pack_datums(call_datums("cross_entropy", seed=seed), 40, True) for seed in range(2))
    for row in second[1:]:
        row.values["weights"][:] = 0
    return [[first[:2], first[2:], [], []], [second[1:2], [second[0], *second[2:]], [], []]]


def one_rank(rank: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    world = SHARD * REPLICAS
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    group, _ = dist.new_subgroups(SHARD)
    found: dict[str, Any] = {}
    for checkpoints in (False, True):
        own = learner(path, group, checkpoints)
        found["bytes"] = layer_bytes(own)
        # One learner of a pair scores three rows while the other scores one.
        mine = rows()[:3] if rank % 2 == 0 else rows()[3:4]
        found["scores", checkpoints] = own.score(mine)
        found["probe", checkpoints] = own.policy.probe()
        found["trained", checkpoints] = train(own, [(loss, shares[rank]) for loss, shares in steps()])
        assert layer_bytes(own) == found["bytes"]
    found["datums"] = train_datums(learner(path, group), [shares[rank] for shares in datum_shares()])
    for name in FAMILIES:
        found["family", name] = policy_of(name, path / name, group).probe()
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


def test_learners_that_share_the_weights_equal_one(model_path: Path, tmp_path: Path) -> None:
    for name, config in FAMILIES.items():
        save(config, model_path / name)
    run_ranks(one_rank, (model_path, tmp_path), SHARD * REPLICAS)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(SHARD * REPLICAS)]
    for checkpoints in (False, True):
        alone = learner(model_path, checkpoints=checkpoints)
        scores, probe = alone.score(rows()[:4]), alone.policy.probe()
        trained = train(alone, [(loss, [row for share in shares for row in share]) for loss, shares in steps()])
        for rank, found in enumerate(ranks):
            expected = scores[:3] if rank % 2 == 0 else scores[3:]
            for ours, theirs in zip(found["scores", checkpoints], expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
            assert found["probe", checkpoints] == probe
            mine = found["trained", checkpoints]
            for ours, theirs in zip(mine["metrics"], trained["metrics"], strict=True):
                assert ours == pytest.approx(theirs, abs=1e-5)
            same(mine["state"].adapter, trained["state"].adapter, 1e-5)
            same(mine["state"].optimizer, trained["state"].optimizer, 1e-5)
            same(mine["state"].adapter, ranks[0]["trained", checkpoints]["state"].adapter, 0)
    datums = train_datums(learner(model_path), [[row for rows in shares for row in rows] for shares in datum_shares()])
    for found in ranks:
        same(found["datums"]["state"].adapter, datums["state"].adapter, 1e-5)
        same(found["datums"]["state"].adapter, ranks[0]["datums"]["state"].adapter, 0)
    for index, together in enumerate(datums["outputs"]):
        joined = DatumOutputs.joined(found["datums"]["outputs"][index] for found in ranks)
        assert joined.sums == pytest.approx(together.sums, rel=1e-5)
        for number, logprobs in joined.logprobs.items():
            torch.testing.assert_close(logprobs, together.logprobs[number], rtol=0, atol=1e-4)
    for name in FAMILIES:
        probe = policy_of(name, model_path / name).probe()
        assert all(found["family", name] == probe for found in ranks)
    for found in ranks:
        held, whole = found["bytes"]
        # 65 rows are 33 and 32, and FSDP2 pads the smaller part.
        assert whole / SHARD <= held <= whole / SHARD * 1.05
