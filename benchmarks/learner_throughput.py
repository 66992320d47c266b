"""Seconds of a gradient step: Tandem's learner, TRL's GRPOTrainer, plain torch, and the limit that matmuls set.

    .venv/bin/python benchmarks/learner_throughput.py --output benchmarks/results/learner_throughput.json

The workload "groups" is what GRPO trains on: groups of completions on a shared prompt, a small Qwen3, LoRA on all
linear layers. All contenders take their steps by turns in this process, so a slow phase of the machine hits all of
them; the ratios count, not the seconds. A turn is one step, or as many as begin within 8 seconds; the whole takes 4
minutes. The contenders are:

- `tandem`: `Learner.step` on packed rows;
- `trl`: the training step of `trl.GRPOTrainer` on the same tokens, one group per micro-batch, and its optimizer's step;
- `dense`: plain torch and PEFT, one padded sequence per completion;
- `shared`: plain torch and PEFT on Tandem's packed rows, under a dense mask;
- `matmuls`: only the products of activations and gradients with the frozen weights, once forward and once backward,
  without attention: no step can be faster in this precision.

The JSON has, for each, the median of the seconds of wall time, the trained tokens per second, and the ratio to TRL; and
the machine, with the load of what else ran.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tandem.rl.config import LossConfig
from tandem.rl.learner import Learner
from tandem.rl.models.attention.masks import dense_mask
from tandem.rl.models.freed_memory import keep_freed_memory
from tandem.rl.models.lora.adapter import peft_config
from tandem.rl.models.lora.linear import frozen_product
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.policy import Policy
from tandem.rl.settings import LoraSettings
from tandem.rl.tokens.tokenizing import TokenizedSequence

LEARNING_RATE = 1e-6
TURN_S = 8.0
Step = Callable[[], object]


@dataclass(frozen=True)
class Workload:
    """Sizes of the model and of the job. The defaults are the workload "groups"."""

    num_groups: int = 4
    group_size: int = 8
    prompt_tokens: int = 768
    completion_tokens: int = 85
    spread_tokens: int = 10
    """Completions have `completion_tokens` plus or minus up to this many."""
    hidden: int = 384
    num_layers: int = 6
    num_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 64
    intermediate: int = 1024
    vocabulary: int = 8192
    lora_r: int = 8

    def make_model(self, directory: Path) -> None:
        torch.manual_seed(0)
        config = Qwen3Config(
            hidden_size=self.hidden,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
            max_position_embeddings=self.prompt_tokens + self.completion_tokens + self.spread_tokens,
        )
        Qwen3ForCausalLM(config).save_pretrained(directory)

    def make_groups(self) -> list[list[TokenizedSequence]]:
        generator = torch.Generator().manual_seed(1)
        return [self._make_group(index, generator) for index in range(self.num_groups)]

    def _make_group(self, index: int, generator: torch.Generator) -> list[TokenizedSequence]:
        prompt = torch.randint(self.vocabulary, (self.prompt_tokens,), generator=generator)
        group = []
        for number in range(self.group_size):
            extra = int(torch.randint(-self.spread_tokens, self.spread_tokens + 1, (), generator=generator))
            num_tokens = self.completion_tokens + extra
            completion = torch.randint(self.vocabulary, (num_tokens,), generator=generator)
            is_sampled = torch.arange(len(prompt) + num_tokens) >= len(prompt)
            group.append(
                TokenizedSequence(
                    group=index,
                    trajectory=number,
                    history=0,
                    token_ids=torch.cat([prompt, completion]),
                    loss_mask=is_sampled,
                    sampling_logprobs=torch.where(is_sampled, -9.0, float("nan")).double(),
                    choice_offsets=(len(prompt),),
                    advantage=1.0 if number % 2 else -1.0,
                    weight=1.0,
                    prompt_length=len(prompt) - 1,
                )
            )
        return group


def tandem_step(path: Path, work: Workload, rows: Sequence[PackedSequence]) -> Step:
    learner = Learner(Policy.load(path, "cpu", "float32", lora=LoraSettings(r=work.lora_r)))

    def step() -> None:
        keep_freed_memory()  # as learner processes do; the other contenders run as in a process of theirs
        learner.step(rows, LossConfig(), LEARNING_RATE)
        keep_freed_memory(False)

    return step


def dense_step(path: Path, work: Workload, groups: Sequence[Sequence[TokenizedSequence]]) -> Step:
    model, optimizer = _peft_model(path, work)

    def step() -> None:
        for group in groups:
            ids, mask, trained = _padded(group)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
            _policy_gradient(logits[trained[:, 1:]], ids[:, 1:][trained[:, 1:]], _advantages(group))
        _apply(model, optimizer)

    return step


def shared_step(path: Path, work: Workload, rows: Sequence[PackedSequence]) -> Step:
    model, optimizer = _peft_model(path, work)
    causal_lm = model.get_base_model()

    def step() -> None:
        for row in rows:
            hidden = causal_lm.model(
                input_ids=row.token_ids[None],
                position_ids=row.positions[None],
                attention_mask=dense_mask(row),
                use_cache=False,
            )[0][0]
            trained = row.loss_mask.nonzero().squeeze(1)
            _policy_gradient(causal_lm.lm_head(hidden[trained - 1]), row.token_ids[trained], row.advantages[trained])
        _apply(model, optimizer)

    return step


def trl_step(path: Path, work: Workload, groups: Sequence[Sequence[TokenizedSequence]], scratch: Path) -> Step:
    """GRPOTrainer's own `training_step`, on given completions instead of new ones."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="TRL currently supports vLLM versions")
        from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(path),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=work.group_size,
            gradient_accumulation_steps=work.num_groups,
            num_generations=work.group_size,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "-"}] * work.group_size),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=_any_tokenizer(), pad_token="-", eos_token="-"),
        peft_config=peft_config(LoraSettings(r=work.lora_r)),
    )
    trainer._prepare_inputs = lambda batch: batch  # it would generate
    trainer.current_gradient_accumulation_steps = work.num_groups
    optimizer = trainer.create_optimizer()
    num_items = sum(sequence.num_trained_tokens for group in groups for sequence in group)
    batches = [_trl_batch(group, num_items) for group in groups]

    def step() -> None:
        trainer.model.train()
        for batch in batches:
            trainer.training_step(trainer.model, dict(batch), None)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 0.1)
        optimizer.step()
        trainer.model.zero_grad()

    return step


def matmuls_step(path: Path, rows: Sequence[PackedSequence]) -> Step:
    model = AutoModelForCausalLM.from_pretrained(path).requires_grad_(False)
    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    inputs = {m: torch.randn(max(r.num_tokens for r in rows), m.in_features) for m in [*layers, head]}
    grads = {m: torch.randn(max(r.num_tokens for r in rows), m.out_features) for m in [*layers, head]}

    def step() -> None:
        for row in rows:
            for layer in [*layers, head]:
                num_tokens = row.num_trained_tokens if layer is head else row.num_tokens
                multiply = F.linear if layer is head else frozen_product  # the faster one for each
                multiply(inputs[layer][:num_tokens], layer.weight)
                multiply(grads[layer][:num_tokens], layer.weight.t())

    return step


def _peft_model(path: Path, work: Workload) -> tuple[Any, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(path), peft_config(LoraSettings(r=work.lora_r)))
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)


def _policy_gradient(logits: Tensor, targets: Tensor, advantages: Tensor) -> None:
    """Backpropagate the loss at importance ratio 1. [N, V], [N], [N]"""
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    (-(logprobs - logprobs.detach()).exp() * advantages).sum().backward()


def _apply(model: Any, optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad()


def _completion(sequence: TokenizedSequence) -> Tensor:
    return sequence.token_ids[sequence.loss_mask]


def _advantages(group: Sequence[TokenizedSequence]) -> Tensor:
    return torch.cat([torch.full((s.num_trained_tokens,), s.advantage) for s in group])


def _padded(group: Sequence[TokenizedSequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids, attention mask and trained positions, each [N, T], padded on the right."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([s.token_ids for s in group], batch_first=True)
    mask = pad([torch.ones(s.num_tokens, dtype=torch.int64) for s in group], batch_first=True)
    return ids, mask, pad([s.loss_mask for s in group], batch_first=True)


def _trl_batch(group: Sequence[TokenizedSequence], num_items: int) -> dict[str, Any]:
    prompts = torch.stack([s.token_ids[~s.loss_mask] for s in group])
    completions = [_completion(s) for s in group]
    pad = nn.utils.rnn.pad_sequence
    return {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": pad(completions, batch_first=True),
        "completion_mask": pad([torch.ones_like(c) for c in completions], batch_first=True),
        "advantages": torch.tensor([s.advantage for s in group]),
        "num_items_in_batch": torch.tensor(num_items),
    }


def _any_tokenizer() -> Any:
    """GRPOTrainer needs a tokenizer; nothing is tokenised."""
    from tokenizers import Tokenizer, models

    return Tokenizer(models.WordLevel({"-": 0}, unk_token="-"))


def measure(
    steps: dict[str, Step], repeats: int, turn_s: float, progress: Callable[[str], None]
) -> dict[str, list[float]]:
    """Return the seconds of each step. All take `repeats` turns, of a step or as many as begin within `turn_s`.

    One step of each before that isn't counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            progress(f"{name}, turn {repeat} of {repeats}")
            turn = [_timed(step)]
            while repeat > 0 and sum(turn) < turn_s:
                turn.append(_timed(step))
            seconds[name] += turn if repeat > 0 else []
    return seconds


def _timed(step: Step) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def run(
    work: Workload,
    repeats: int,
    threads: int,
    turn_s: float = TURN_S,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    torch.set_num_threads(threads)
    load, others = os.getloadavg()[0], psutil.cpu_percent(interval=1.0)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        work.make_model(path)
        groups = work.make_groups()
        longest = max(sum(s.num_tokens - s.prompt_length for s in g) + g[0].prompt_length for g in groups)
        rows = [row for group in groups for row in pack(group, longest)]
        steps = {
            "tandem": tandem_step(path, work, rows),
            "trl": trl_step(path, work, groups, Path(directory) / "trl"),
            "dense": dense_step(path, work, groups),
            "shared": shared_step(path, work, rows),
            "matmuls": matmuls_step(path, rows),
        }
        seconds = measure(steps, repeats, turn_s, progress)
    trained = sum(row.num_trained_tokens for row in rows)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "workload": asdict(work),
        "tokens": {"trained": trained, "in_rows": sum(row.num_tokens for row in rows)},
        "steps": {
            name: {
                "seconds": medians[name],
                "all_seconds": values,
                "trained_tokens_per_second": trained / medians[name],
                "times_trl": medians["trl"] / medians[name],
            }
            for name, values in seconds.items()
        },
        "share_of_matmul_limit": medians["matmuls"] / medians["tandem"],
        "machine": machine(threads, load, others),
    }


def machine(threads: int, load: float, others: float) -> dict[str, Any]:
    """Describe the machine, with the load average and the percentage of busy time before the measurement."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
        "load_before": load,
        "busy_percent_before": others,
    }


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor()


def table(result: dict[str, Any]) -> Table:
    drawn = Table("", "s a step", "trained tokens/s", "times TRL")
    for name, step in result["steps"].items():
        drawn.add_row(
            name,
            f"{step['seconds']:.2f}",
            f"{step['trained_tokens_per_second']:.0f}",
            "" if name == "matmuls" else f"{step['times_trl']:.2f}",
        )
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    console = Console()
    with console.status("") as status:
        result = run(Workload(), arguments.repeats, arguments.threads, progress=status.update)
    console.print(table(result))
    console.print(f"Tandem reaches {result['share_of_matmul_limit']:.0%} of the matmul limit.")
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
