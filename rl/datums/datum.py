"""Datums: sequences with what a loss needs at each of their positions.

A datum says for each position of its tokens which token it predicts there, so nothing is shifted and no chat template
is involved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tandem.rl.datums.losses import LOSSES, LossKind
from tandem.rl.errors import RLError

TARGETS = "target_tokens"
_RATIO_MASK = "sequence_ratio_mask"


class DatumError(RLError, ValueError):
    """A call that can't be trained as it stands.

    Attributes:
        reason: what is wrong and what to do.
        place: like ("data", 3, "loss_fn_inputs", "weights").
    """

    def __init__(self, reason: str, *place: str | int) -> None:
        super().__init__(reason, *place)
        self.reason, self.place = reason, place

    def __str__(self) -> str:
        where = ""
        for part in self.place:
            where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else part
        return f"{where}: {self.reason}" if where else self.reason


@dataclass(frozen=True)
class Datum:
    """One sequence. N positions, K targets of each where `targets` has two dimensions."""

    token_ids: Tensor
    """int64 [N]. The input."""
    targets: Tensor
    """int64 [N] or [N, K]. The tokens whose logprobs are wanted after each position."""
    values: Mapping[str, Tensor]
    """float32 [N] or like `targets`: the other inputs of the loss, by their names."""

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()


@dataclass(frozen=True)
class Call:
    """The loss of one call over its datums."""

    datums: Sequence[Datum]
    loss: str
    """A name in `LOSSES`."""
    options: Mapping[str, float]


def loss_kind(name: str, place: str = "loss_fn") -> LossKind:
    """Return a loss by its name. Raises DatumError for others."""
    if name not in LOSSES:
        known = ", ".join(LOSSES)
        advice = f"isn't computed here; use one of {known}"
        if name == "stable_reinforce":
            advice = "isn't published, so it can't be computed here; set loss_fn to importance_sampling or cispo"
        raise DatumError(f"{name!r} {advice}", place)
    return LOSSES[name]


def check_call(call: Call, vocabulary_size: int, max_length: int) -> None:
    """Raise DatumError, which names the place, unless every number can be trained on."""
    kind = loss_kind(call.loss)
    for name, value in call.options.items():
        if name not in kind.options:
            allowed = ", ".join(kind.options) or "none"
            raise DatumError(f"isn't an option of {call.loss}, which has {allowed}", "loss_fn_config", name)
        if not torch.isfinite(torch.tensor(float(value))):
            raise DatumError(f"is {value}; it must be finite", "loss_fn_config", name)
    for name in kind.required_options:
        if name not in call.options:
            raise DatumError(f"is missing; {call.loss} needs it", "loss_fn_config", name)
    if not call.datums:
        raise DatumError("is empty; send at least one datum", "data")
    for index, datum in enumerate(call.datums):
        _check_shapes(datum, kind, call.loss, index, max_length)
    if not _are_numbers_right(call.datums, vocabulary_size):
        for index, datum in enumerate(call.datums):  # to name the place
            _check_numbers(datum, index, vocabulary_size)


def _check_shapes(datum: Datum, kind: LossKind, loss: str, index: int, max_length: int) -> None:
    place, inputs = ("data", index), ("data", index, "loss_fn_inputs")
    if not datum.num_tokens:
        raise DatumError("has no tokens", *place, "model_input")
    if datum.num_tokens > max_length:
        raise DatumError(f"has {datum.num_tokens} tokens, and the base model takes {max_length}", *place, "model_input")
    shape = tuple(datum.targets.shape)
    if len(shape) not in (1, 2) or shape[0] != datum.num_tokens:
        raise DatumError(
            f"has shape {list(shape)}; it needs one row for each of the {datum.num_tokens} tokens", *inputs, TARGETS
        )
    if len(shape) == 2 and (not kind.takes_many_targets or not shape[1]):
        raise DatumError(f"has shape {list(shape)}, and {loss} takes one target per token", *inputs, TARGETS)
    allowed = {*kind.required, *kind.optional} - {TARGETS}
    for name in sorted(set(kind.required) - {TARGETS} - datum.values.keys()):
        raise DatumError(f"is missing; {loss} needs it", *inputs, name)
    for name, values in datum.values.items():
        if name not in allowed:
            raise DatumError(f"isn't read by {loss}, which reads {', '.join(sorted(allowed))}", *inputs, name)
        if values.shape != datum.targets.shape:
            raise DatumError(
                f"has shape {list(values.shape)}, and {TARGETS} has {list(shape)}; they must be equal", *inputs, name
            )


def _are_numbers_right(datums: Sequence[Datum], vocabulary_size: int) -> bool:
    """Return whether `_check_numbers` raises for none of them: a few operations for all are much faster."""
    ids = torch.cat([part.flatten() for datum in datums for part in (datum.token_ids, datum.targets)])
    if bool(((ids < 0) | (ids >= vocabulary_size)).any()):
        return False
    alike: dict[tuple[str, ...], list[Datum]] = {}
    for datum in datums:
        alike.setdefault(tuple(datum.values), []).append(datum)
    for names, own in alike.items():
        values = {name: torch.cat([datum.values[name].flatten() for datum in own]) for name in names}
        if not all(bool(_counted(values, name).isfinite().all()) for name in names):
            return False
    return True


def _counted(of_datum: Mapping[str, Tensor], name: str) -> Tensor:
    """Return values with 0 for those that nothing reads: a logprob counts where advantage or mask isn't 0."""
    values = of_datum[name]
    if name != "logprobs":
        return values
    is_read = of_datum["advantages"] != 0
    if _RATIO_MASK in of_datum:
        is_read = is_read | (of_datum[_RATIO_MASK] != 0)
    return torch.where(is_read, values, 0.0)


def _check_numbers(datum: Datum, index: int, vocabulary_size: int) -> None:
    place, inputs = ("data", index), ("data", index, "loss_fn_inputs")
    _check_ids(datum.token_ids, vocabulary_size, *place, "model_input")
    _check_ids(datum.targets, vocabulary_size, *inputs, TARGETS)
    for name in datum.values:
        if not _counted(datum.values, name).isfinite().all():
            where = " at a position whose advantage or mask isn't 0" if name == "logprobs" else ""
            raise DatumError(f"has a number that isn't finite{where}", *inputs, name)


def _check_ids(ids: Tensor, vocabulary_size: int, *place: str | int) -> None:
    wrong = ((ids < 0) | (ids >= vocabulary_size)).nonzero()
    if wrong.numel():
        at = wrong[0].tolist()
        shown = int(ids[tuple(at)])
        raise DatumError(
            f"has token {shown} at {at if len(at) > 1 else at[0]}; the base model's are 0 to {vocabulary_size - 1}",
            *place,
        )
