"""The traces of one trajectory group, and their bytes. Loads no torch: the API reads them.

The bytes are safetensors, compressed by zstd. Sequences of a group begin alike, so each has only the tokens that the
one before doesn't begin with. Trained tokens come in runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray
from safetensors.numpy import load, save

from tandem.rl.tokens.trained_turns import TrainedTurn

Floats = NDArray[np.float32]
UNKNOWN = -1
WINDOW_LOG = 23  # 8 MiB: long sequences that begin alike are found again
COLUMNS = ("sampling_logprobs", "learner_logprobs", "old_logprobs", "ref_logprobs")
OPTIONAL = ("old_logprobs", "ref_logprobs")


@dataclass(frozen=True, eq=False)
class SequenceTrace:
    """One token sequence of a trajectory as it was trained. Logprobs are NaN where nothing is trained, or unknown."""

    trajectory: int
    history: int
    policy_version: int | None
    """The step of the version that the trajectory began with, if known."""
    gradient_step: int
    """Index of the job's gradient step that trained it, from 0."""
    advantage: float
    weight: float
    turns: tuple[TrainedTurn, ...]
    token_ids: NDArray[np.int32]
    """[T]"""
    loss_mask: NDArray[np.bool_]
    """[T]"""
    sampling_logprobs: Floats
    """[T]"""
    learner_logprobs: Floats
    """[T]. The policy's, at the gradient step."""
    old_logprobs: Floats | None = None
    """[T]. Under the policy at the start of the job, if the job computed them."""
    ref_logprobs: Floats | None = None
    """[T]. Under the KL reference, if the job has one."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


def pack_group(sequences: Sequence[SequenceTrace]) -> bytes:
    """Return the bytes of a group's traces."""
    before = np.empty(0, np.int32)
    numbers, ids, runs, turns = [], [], [], []
    for one in sequences:
        shared, own_runs = _common_length(before, one.token_ids), _runs(one.loss_mask)
        numbers.append(
            (
                *(one.trajectory, one.history, _or_unknown(one.policy_version), one.gradient_step),
                *(shared, one.num_tokens - shared, len(own_runs), len(one.turns)),
            )
        )
        ids.append(one.token_ids[shared:])
        runs.append(own_runs)
        turns += [(turn.begin, turn.num_tokens, turn.index, _or_unknown(turn.policy_version)) for turn in one.turns]
        before = one.token_ids
    tensors = {
        "sequences": np.array(numbers, np.int32).reshape(-1, 8),
        "values": np.array([(one.advantage, one.weight) for one in sequences], np.float64).reshape(-1, 2),
        "token_ids": np.concatenate([before[:0], *ids]),
        "runs": np.concatenate([np.empty((0, 2), np.int32), *runs]),
        "turns": np.array(turns, np.int32).reshape(-1, 4),
    }
    for name in COLUMNS:
        columns = [getattr(one, name) for one in sequences]
        if all(column is not None for column in columns):
            trained = [column[one.loss_mask] for column, one in zip(columns, sequences, strict=True)]
            tensors[name] = np.concatenate([np.empty(0, np.float32), *trained])
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=WINDOW_LOG, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(save(tensors))


def unpack_group(content: bytes) -> list[SequenceTrace]:
    """Return the traces in the bytes that `pack_group` made."""
    return list(_unpacked(load(zstandard.ZstdDecompressor().decompress(content))))


def _unpacked(tensors: Mapping[str, NDArray[np.generic]]) -> Iterator[SequenceTrace]:
    ids = np.empty(0, np.int32)
    at_id = at_run = at_turn = at_trained = 0
    values: list[list[float]] = tensors["values"].tolist()
    for row, (advantage, weight) in zip(tensors["sequences"].tolist(), values, strict=True):
        trajectory, history, version, step, shared, num_new, num_runs, num_turns = row
        ids = np.concatenate([ids[:shared], tensors["token_ids"][at_id : at_id + num_new]])
        mask = np.zeros(len(ids), bool)
        for begin, length in tensors["runs"][at_run : at_run + num_runs].tolist():
            mask[begin : begin + length] = True
        num_trained = int(mask.sum())
        columns = {}
        for name in COLUMNS:
            if name in tensors:
                columns[name] = np.full(len(ids), math.nan, np.float32)
                columns[name][mask] = tensors[name][at_trained : at_trained + num_trained]
        yield SequenceTrace(
            trajectory=trajectory,
            history=history,
            policy_version=_known(version),
            gradient_step=step,
            advantage=advantage,
            weight=weight,
            turns=tuple(
                TrainedTurn(begin, length, index, _known(sampled_by))
                for begin, length, index, sampled_by in tensors["turns"][at_turn : at_turn + num_turns].tolist()
            ),
            token_ids=ids,
            loss_mask=mask,
            **columns,
        )
        at_id, at_run, at_turn = at_id + num_new, at_run + num_runs, at_turn + num_turns
        at_trained += num_trained


def _runs(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return begin and length of each run of true values, int32 [R, 2]."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    begins, ends = changes[::2], changes[1::2]
    return np.stack([begins, ends - begins], axis=1).astype(np.int32)


def _common_length(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


def _or_unknown(version: int | None) -> int:
    return UNKNOWN if version is None else version


def _known(version: int) -> int | None:
    return None if version == UNKNOWN else version
