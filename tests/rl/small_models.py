"""Small untrained models and packed sequences for tests of the learner, made without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy

VOCABULARY = 199


def small_config(config_class: type[PreTrainedConfig] = Qwen3Config, **overrides: object) -> PreTrainedConfig:
    """Return a small config. The vocabulary has an odd size, so that no chunk or block size divides it."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    return config_class(**{**settings, **overrides})


def save_model(path: Path, model_class: type[PreTrainedModel] = Qwen3ForCausalLM, **overrides: object) -> Path:
    """Write a randomly initialised model to `path`; `overrides` go into its config."""
    torch.manual_seed(7)
    model = model_class(small_config(model_class.config_class, **overrides))
    with torch.no_grad():
        # The default initialisation predicts every token almost equally; sharper predictions make tests sharper.
        model.get_input_embeddings().weight.mul_(4)
    model.save_pretrained(path)
    return path


def randomise_adapter(policy: Policy, seed: int = 1) -> None:
    """Give the policy an adapter with B != 0, so that every adapter tensor has a gradient."""
    generator = torch.Generator().manual_seed(seed)
    state = policy.adapter_state()
    policy.load_adapter_state({name: t + 0.05 * torch.randn(t.shape, generator=generator) for name, t in state.items()})


def packed_group(prompt_length: int, completion_lengths: Sequence[int], seed: int = 0) -> PackedSequence:
    """A group in one row: a shared prompt, then completions that begin with one untrained token.

    Completions have two turns with an untrained token between them. Sampling logprobs are unknown here and there.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = [prompt_length, *completion_lengths] if prompt_length else list(completion_lengths)
    first = 1 if prompt_length else 0
    segments, parents, positions, mask = [], [], [], []
    for segment, length in enumerate(lengths):
        is_prompt = bool(prompt_length) and segment == 0
        parent = 0 if prompt_length else segment
        start = 0 if is_prompt else prompt_length
        segments += [segment] * length
        parents += [parent] * length
        positions += range(start, start + length)
        mask += [not is_prompt and offset not in (0, length // 2) for offset in range(length)]
    num_tokens = len(segments)
    loss_mask, segment_ids = torch.tensor(mask), torch.tensor(segments)

    def normal() -> torch.Tensor:
        return torch.randn(num_tokens, generator=generator)

    completion_advantages = torch.randn(len(lengths) + first, generator=generator)
    sampling = torch.where(loss_mask & (normal() < 1.5), -3 + normal(), float("nan"))
    return PackedSequence(
        token_ids=torch.randint(0, VOCABULARY, (num_tokens,), generator=generator),
        positions=torch.tensor(positions),
        segment_ids=segment_ids,
        parent_ids=torch.tensor(parents),
        loss_mask=loss_mask,
        sampling_logprobs=sampling,
        advantages=torch.where(loss_mask, completion_advantages[segment_ids], 0.0),
        weights=torch.where(loss_mask, normal().abs() + 0.5, 0.0),
    )


def unpacked(packed: PackedSequence) -> list[PackedSequence]:
    """Return each completion of a packed group as a separate row with its own copy of the prompt."""
    rows = []
    for segment in packed.segment_ids.unique().tolist():
        own = packed.segment_ids == segment
        parent = int(packed.parent_ids[own][0])
        if not packed.loss_mask[own].any():
            continue
        index = (own | (packed.segment_ids == parent)).nonzero().squeeze(1)

        def take(values: torch.Tensor | None, index: torch.Tensor = index) -> torch.Tensor | None:
            return None if values is None else values[index]

        zeros = torch.zeros_like(index)
        rows.append(
            PackedSequence(
                token_ids=packed.token_ids[index],
                positions=torch.arange(index.numel()),
                segment_ids=zeros,
                parent_ids=zeros,
                loss_mask=packed.loss_mask[index],
                sampling_logprobs=packed.sampling_logprobs[index],
                advantages=packed.advantages[index],
                weights=packed.weights[index],
                old_logprobs=take(packed.old_logprobs),
                ref_logprobs=take(packed.ref_logprobs),
            )
        )
    return rows


def joined(*rows: PackedSequence) -> PackedSequence:
    """Return several rows as one. Segments are renumbered, so rows share none."""
    columns: dict[str, list[torch.Tensor]] = {}
    next_segment = 0
    for row in rows:
        shifted = replace(row, segment_ids=row.segment_ids + next_segment, parent_ids=row.parent_ids + next_segment)
        next_segment = int(shifted.segment_ids.max()) + 1
        for field in fields(shifted):
            if field.name != "repeats" and getattr(shifted, field.name) is not None:
                columns.setdefault(field.name, []).append(getattr(shifted, field.name))
    return PackedSequence(**{name: torch.cat(parts) for name, parts in columns.items()})


def with_reference(row: PackedSequence, seed: int = 5) -> PackedSequence:
    """Return the row with reference logprobs at its trained tokens, NaN elsewhere."""
    noise = torch.randn(row.num_tokens, generator=torch.Generator().manual_seed(seed))
    return replace(row, ref_logprobs=torch.where(row.is_trained, -4 + noise, float("nan")))
