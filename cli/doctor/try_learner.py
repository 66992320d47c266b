"""A learner for a minute: `python -m tandem.cli.doctor.try_learner MODEL DEVICE DIRECTORY` prints JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import torch

from tandem.cli.doctor.trial import Trial, run_trial
from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.base_config import read_config, shares_prefixes
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.policy import Policy, resolve_attention
from tandem.rl.tokens.tokenizing import TokenizedSequence

GROUP = 5
STEPS = 5


def main(trial: Trial) -> Mapping[str, object]:
    """Compare attention with a dense mask in float32, and time gradient steps in the usual dtype."""
    row = _row(trial)
    with torch.no_grad():
        ours, dense = (_load(trial, kind, "float32").logprobs(row)[0].cpu() for kind in ("auto", "sdpa"))
    known = ~dense.isnan()
    policy = _load(trial, "auto", "auto")
    trial.probe_file.write_text(json.dumps(policy.probe_token_ids))
    probe = policy.probe()
    return {
        "attention": resolve_attention("auto", policy.device),
        "attention_difference": float((ours - dense)[known].abs().max()),
        "tokens_per_s": _tokens_per_s(policy, row),
        "probe": probe,
        "dtype": str(policy.dtype).removeprefix("torch."),
    }


def _load(trial: Trial, attention: str, dtype: str) -> Policy:
    base = trial.base
    return Policy.load(
        base.path,
        device=trial.device,
        dtype=dtype,
        attention=attention,  # type: ignore[arg-type]  # "auto" or a name of it
        lora=base.config.lora,
        max_length=base.max_model_len,
    )


def _tokens_per_s(policy: Policy, row: PackedSequence) -> float:
    learner = Learner(policy)
    learner.step([row], LossConfig(), learning_rate=0.0)  # compiles kernels
    began = time.perf_counter()
    for _ in range(STEPS):
        learner.step([row], LossConfig(), learning_rate=0.0)  # its metrics wait for the device
    return STEPS * row.num_tokens / (time.perf_counter() - began)


def _row(trial: Trial) -> PackedSequence:
    """Return completions after a common prompt, of lengths that no size of a block divides."""
    length = trial.base.max_model_len
    generator = torch.Generator().manual_seed(0)

    def tokens(number: int) -> torch.Tensor:
        return torch.randint(len(trial.base.tokenizer), (number,), generator=generator)

    prompt = tokens(length // 5 - 1)
    group = []
    for index in range(GROUP):
        token_ids = torch.cat([prompt, tokens(length // 7 + 3 * index)])
        mask = torch.arange(token_ids.numel()) >= prompt.numel()
        group.append(
            TokenizedSequence(
                group=0,
                trajectory=index,
                history=0,
                token_ids=token_ids,
                loss_mask=mask,
                sampling_logprobs=torch.full(mask.shape, float("nan"), dtype=torch.float64),
                choice_offsets=(prompt.numel(),),
                advantage=1.0 if index % 2 else -1.0,
                weight=1.0,
                prompt_length=prompt.numel() - 1,
            )
        )
    return pack(group, length, shares_prefixes=shares_prefixes(read_config(trial.base.path)))[0]


if __name__ == "__main__":
    run_trial(main)
