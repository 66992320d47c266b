"""Checks a loaded base model: does it compute a packed sequence as it computes each sequence alone?

A configuration may not say, or not yet say in a way that is known here, that a model has windows, recurrent layers or
positions of its own. So the model itself is asked. It scores a completion, a branch of it and an unrelated sequence,
packed under our mask, and then each of them alone under no mask but its own. A model that can't share prefixes scores
whole sequences, which shows whether the state of one leaks into the next.

The check costs three forward passes over about 1,100 tokens, or over the longest reach that the configuration names, up
to the longest sequence in use. So it costs about 7 TFLOP per billion parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from tandem.rl.errors import PolicyError
from tandem.rl.logprobs import LogitRule
from tandem.rl.models.attention.masks import Attention, forward_inputs
from tandem.rl.models.attention.windows import attention_windows
from tandem.rl.models.base_config import (
    attention_kinds,
    attention_spans,
    first_sentence,
    longest_sequence,
    shares_prefixes,
)
from tandem.rl.models.layers.last_layer import can_prune, hidden_at
from tandem.rl.models.layers.output_head import logit_rule
from tandem.rl.models.reference import as_released
from tandem.rl.packing import PackedSequence, one_segment, unpack
from tandem.rl.probe import Difference, compare, probe_token_ids, tolerance_for

COMPLETION_TOKENS = 24
UNNAMED_SPAN = 1024  # tokens; windows that a configuration doesn't name may be as long
LONGEST_PROBE = 9216  # tokens
SHORT_PROBE = 72  # tokens


@torch.no_grad()
def check_faithfulness(
    causal_lm: PreTrainedModel, attention: Attention, max_length: int | None, prune: bool = False
) -> LogitRule:
    """Return how the model makes logits. Raise PolicyError unless packed logprobs are those of the model alone.

    `causal_lm` is in the mode in which it is trained, and `prune` as in training. `max_length` is that of the longest
    sequence in use.
    """
    name = type(causal_lm).__name__
    try:
        rule = logit_rule(causal_lm)
        difference = _difference(causal_lm, rule, attention, max_length, prune)
    except (PolicyError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise PolicyError(
            f"{name} ({causal_lm.config.model_type}) can't compute packed sequences "
            f"({type(error).__name__}: {first_sentence(error)}) Use a decoder-only model with causal attention."
        ) from error
    if not difference.is_agreement:
        kinds = ", ".join(sorted(attention_kinds(causal_lm.config)))
        raise PolicyError(
            f"{name} ({causal_lm.config.model_type}) gives other logprobs in packed sequences than alone: "
            f"{difference}. Its configuration names {kinds}. Use a base model with causal attention, full or in "
            f"sliding windows, in every layer."
        )
    return rule


@torch.no_grad()
def can_prune_last_layer(causal_lm: PreTrainedModel, attention: Attention) -> bool:
    """Return whether the last layer may be computed for the wanted positions only (`hidden_at`)."""
    if attention != "segments":
        return False
    row, sequences = _probe(causal_lm, SHORT_PROBE)
    wanted = torch.cat([indices[first:-1] for indices, first in sequences[:2]])
    return can_prune(causal_lm.get_decoder(), _inputs(causal_lm, row, attention), wanted)


def _inputs(causal_lm: PreTrainedModel, row: PackedSequence, attention: Attention) -> dict[str, Any]:
    head, config = causal_lm.get_output_embeddings().weight, causal_lm.config
    row = row.to(head.device)
    return forward_inputs(row, attention, head.dtype, attention_windows(config), shares_prefixes(config))


def _difference(
    causal_lm: PreTrainedModel, rule: LogitRule, attention: Attention, max_length: int | None, prune: bool
) -> Difference:
    row, sequences = _probe(causal_lm, max_length)
    head = causal_lm.get_output_embeddings().weight
    inputs = _inputs(causal_lm, row, attention)
    predicting = [indices[first:-1].to(head.device) for indices, first in sequences]
    hidden = hidden_at(causal_lm.get_decoder(), inputs, torch.cat(predicting), prune)
    packed, alone, spread = list[float](), list[float](), 0.0
    for (indices, first), of_sequence in zip(sequences, hidden.split([len(p) for p in predicting]), strict=True):
        token_ids = row.token_ids[indices].to(head.device)
        ours = rule.apply(F.linear(of_sequence, head).float())
        own = _alone(causal_lm, token_ids, num_predictions=len(ours)).float()
        targets = token_ids[first + 1 :, None]
        packed += ours.log_softmax(-1).gather(1, targets).squeeze(1).tolist()
        alone += own.log_softmax(-1).gather(1, targets).squeeze(1).tolist()
        spread = max(spread, own.std(dim=-1).mean().item())
    # An untrained model predicts all tokens almost equally: then small differences are large ones.
    return compare(packed, alone, tolerance_for(head.dtype).scaled(min(1.0, max(spread, 1e-3))))


def _probe(causal_lm: PreTrainedModel, max_length: int | None) -> tuple[PackedSequence, list[tuple[Tensor, int]]]:
    """Return a row, and for each sequence in it the indices [T] of its tokens and the first that predicts a next one.

    The first completion repeats the beginning of the prompt, which a model with a window can't see any more; the second
    leaves it in its middle. A sequence of the prompt's first tokens follows: it shows whether another sequence's length
    or states change it. Without shared prefixes, the first completion is whole and two short sequences follow it.
    """
    config = causal_lm.config
    longest = min(LONGEST_PROBE, max_length or LONGEST_PROBE, longest_sequence(config) or LONGEST_PROBE)
    own = min(COMPLETION_TOKENS, longest // 3)
    half = own // 2
    prompt = min(max({UNNAMED_SPAN, *attention_spans(config)}) + 8, longest - own - half)
    tokens = torch.tensor(probe_token_ids(config, 2 * prompt)[:prompt])
    if not shares_prefixes(config):
        return _whole_sequences([torch.cat([tokens, tokens[:own]]), tokens[half:][:own], tokens[:own]], own)
    lengths = torch.tensor([prompt, own, own, own])
    firsts = [0, prompt, prompt + half, 0]
    row = replace(
        one_segment(torch.cat([tokens, tokens[:own], tokens[half:][:own], tokens[:own]])),
        positions=torch.cat([first + torch.arange(n) for first, n in zip(firsts, lengths.tolist(), strict=True)]),
        segment_ids=torch.arange(4).repeat_interleave(lengths),
        parent_ids=torch.tensor([0, 0, 1, 3]).repeat_interleave(lengths),
    )
    return row, [(indices, first) for indices, first in zip(unpack(row), firsts[1:], strict=True)]


def _whole_sequences(sequences: list[Tensor], num_scored: int) -> tuple[PackedSequence, list[tuple[Tensor, int]]]:
    """Return a row of roots, and what `_probe` returns for their last `num_scored` tokens."""
    lengths = torch.tensor([len(tokens) for tokens in sequences])
    roots = torch.arange(len(sequences)).repeat_interleave(lengths)
    positions = torch.cat([torch.arange(len(tokens)) for tokens in sequences])
    row = replace(one_segment(torch.cat(sequences)), positions=positions, segment_ids=roots, parent_ids=roots)
    return row, [(indices, len(indices) - num_scored) for indices in unpack(row)]


def _alone(causal_lm: PreTrainedModel, token_ids: Tensor, num_predictions: int) -> Tensor:
    """Return the model's own logits [num_predictions, V] at the positions before the last, under its own mask."""
    keep = {"logits_to_keep": num_predictions + 1} if "logits_to_keep" in _arguments(causal_lm) else {}
    with as_released(causal_lm):
        logits: Tensor = causal_lm(input_ids=token_ids[None], use_cache=False, **keep).logits[0]
    return logits[-num_predictions - 1 : -1]


def _arguments(causal_lm: nn.Module) -> Sequence[str]:
    return list(inspect.signature(causal_lm.forward).parameters)
