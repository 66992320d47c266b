"""Calls that can't be trained are refused with the place of the fault."""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tandem.rl.datums.datum import Call, Datum, DatumError, check_call
from tandem.rl.datums.losses import LOSSES

VOCABULARY, MAX_LENGTH = 100, 8
INPUTS = ("data", 1, "loss_fn_inputs")
RIGHT = {
    "logprobs": [-1.0, -2.0, -3.0],
    "advantages": [0.0, 1.0, 1.0],
    "sequence_ratio_mask": [0.0, 0.0, 1.0],
    "weights": [1.0, 0.0, -1.0],
}


def datum(loss: str, changes: Mapping[str, Any] | None = None) -> Datum:
    """Return a datum with what a loss needs. `changes`: None removes an input."""
    names = {*LOSSES[loss].required, *({"weights"} if loss == "cross_entropy" else ())}
    values = {name: RIGHT[name] for name in names - {"target_tokens"}} | dict(changes or {})
    ids, targets = values.pop("ids", [1, 2, 3]), values.pop("target_tokens", [2, 3, 4])
    tensors = {name: torch.tensor(value) for name, value in values.items() if value is not None}
    return Datum(torch.tensor(ids, dtype=torch.int64), torch.tensor(targets), tensors)


def check(loss: str, changes: Mapping[str, Any] | None = None, options: Mapping[str, float] | None = None) -> None:
    options = ({"beta": 0.1} if loss == "dro" else {}) if options is None else options
    check_call(Call([datum(loss), datum(loss, changes)], loss, options), VOCABULARY, MAX_LENGTH)


@pytest.mark.parametrize("loss", LOSSES)
def test_right_calls_are_taken(loss: str) -> None:
    check(loss)
    if loss != "cross_entropy":
        check(loss, {"logprobs": [math.nan, -2.0, -3.0]})  # nothing reads it


def test_options_and_optional_inputs_are_taken() -> None:
    check("cross_entropy", {"weights": None})
    check("cross_entropy", {"target_tokens": [[1, 2], [3, 4], [5, 6]], "weights": [[0.0, 1.0]] * 3})
    check("ppo", {"clip_low_threshold": [0.5, 0.5, 0.5]}, {"clip_high_threshold": 2.0})


@pytest.mark.parametrize(
    ("loss", "changes", "place"),
    [
        ("cross_entropy", {"ids": [], "target_tokens": [], "weights": None}, ("data", 1, "model_input")),
        ("cross_entropy", {"ids": [1] * 9, "target_tokens": [1] * 9, "weights": [1.0] * 9}, ("data", 1, "model_input")),
        ("cross_entropy", {"ids": [1, 2, 100]}, ("data", 1, "model_input")),
        ("cross_entropy", {"target_tokens": [1, -1, 2]}, (*INPUTS, "target_tokens")),
        ("cross_entropy", {"target_tokens": [1, 2]}, (*INPUTS, "target_tokens")),
        ("cross_entropy", {"target_tokens": [[], [], []]}, (*INPUTS, "target_tokens")),
        ("cross_entropy", {"target_tokens": [[[1]], [[2]], [[3]]]}, (*INPUTS, "target_tokens")),
        ("cross_entropy", {"target_tokens": [[1, 2], [3, 4], [5, 6]]}, (*INPUTS, "weights")),
        ("cross_entropy", {"weights": [1.0, math.nan, 0.0]}, (*INPUTS, "weights")),
        ("cross_entropy", {"advantages": [1.0, 1.0, 0.0]}, (*INPUTS, "advantages")),
        ("ppo", {"target_tokens": [[1], [2], [3]]}, (*INPUTS, "target_tokens")),
        ("ppo", {"advantages": None}, (*INPUTS, "advantages")),
        ("ppo", {"advantages": [0.0, math.inf, 1.0]}, (*INPUTS, "advantages")),
        ("ppo", {"logprobs": [-1.0, -math.inf, -2.0]}, (*INPUTS, "logprobs")),
        ("ppo", {"weights": [1.0, 1.0, 0.0]}, (*INPUTS, "weights")),
        ("gspo", {"sequence_ratio_mask": None}, (*INPUTS, "sequence_ratio_mask")),
        (
            "gspo",
            {"sequence_ratio_mask": [1.0, 1.0, 1.0], "logprobs": [math.nan, -1.0, -1.0]},
            (*INPUTS, "logprobs"),
        ),
    ],
)
def test_a_fault_names_its_place(loss: str, changes: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(DatumError) as caught:
        check(loss, changes)
    assert caught.value.place == place


@pytest.mark.parametrize(
    ("loss", "options", "place"),
    [
        ("cross_entropy", {"beta": 0.1}, ("loss_fn_config", "beta")),
        ("ppo", {"clip_high_threshold": math.inf}, ("loss_fn_config", "clip_high_threshold")),
        ("dro", {}, ("loss_fn_config", "beta")),
    ],
)
def test_options_are_checked(loss: str, options: dict[str, float], place: tuple[str, ...]) -> None:
    with pytest.raises(DatumError) as caught:
        check(loss, options=options)
    assert caught.value.place == place


def test_unknown_losses_and_empty_calls() -> None:
    with pytest.raises(DatumError, match=r"loss_fn: 'stable_reinforce' .* importance_sampling or cispo"):
        check_call(Call([datum("ppo")], "stable_reinforce", {}), VOCABULARY, MAX_LENGTH)
    with pytest.raises(DatumError, match="data: is empty"):
        check_call(Call([], "ppo", {}), VOCABULARY, MAX_LENGTH)


def test_an_error_keeps_its_place_between_processes() -> None:
    error = pickle.loads(pickle.dumps(DatumError("is wrong", "data", 3, "model_input")))
    assert (error.place, str(error)) == (("data", 3, "model_input"), "data[3].model_input: is wrong")
