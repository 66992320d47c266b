"""Rows cut into shorter ones: every sequence sees, and every completion trains, exactly what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import packed_group
from trees import branching_group, trees, visible

from tandem.rl.gradient_step.row_splitting import Piece, join_tokens, longest_sequence, split_row
from tandem.rl.packed_rows import segments_of
from tandem.rl.packing import PackedSequence, pack
from tandem.rl.steps import mark_fresh
from tandem.rl.tokens.tokenizing import TokenizedSequence


def trainings(row: PackedSequence, completion: int) -> list[tuple[object, ...]]:
    """Return the trainings of a completion in the order of the row: what trains, how, and the tokens that it sees."""
    sees, found = visible(row), []
    own = (row.loss_mask & (row.segment_ids == completion)).nonzero().squeeze(1).tolist()
    repeated = (row.repeats.completion_ids == completion).nonzero().squeeze(1).tolist()
    for source, places in ((row, own), (row.repeats, repeated)):
        for place in places:
            index = int(row.repeats.indices[place]) if source is row.repeats else place
            assert row.segment_ids[index - 1] == row.segment_ids[index], "nothing predicts this token"
            context = row.token_ids[sees[index - 1]].tolist()  # of the prediction
            numbers = [getattr(source, name)[place] for name in ("advantages", "weights", "sampling_logprobs")]
            version = int(source.policy_versions[place]) if source.policy_versions is not None else None
            numbers = [round(float(number.nan_to_num(9.0)), 6) for number in numbers]
            found.append((index, tuple(context), int(row.token_ids[index]), *numbers, version))
    return [training[1:] for training in sorted(found)]


def completions(row: PackedSequence) -> Counter[tuple[object, ...]]:
    ids = {*row.segment_ids[row.loss_mask].tolist(), *row.repeats.completion_ids.tolist()}
    return Counter(tuple(trainings(row, completion)) for completion in ids)


def again(pieces: list[Piece], max_tokens: int) -> list[Piece]:
    """Return pieces of the pieces."""
    return [
        Piece(part.row, piece.indices[part.indices]) for piece in pieces for part in split_row(piece.row, max_tokens)
    ]


def assert_same_work(row: PackedSequence, pieces: list[Piece], max_tokens: int) -> None:
    assert sum((completions(piece.row) for piece in pieces), Counter()) == completions(row)
    for piece in pieces:
        segments_of(piece.row)  # depth-first, with late branches first
        assert piece.row.num_tokens <= max_tokens or longest_sequence(piece.row) == piece.row.num_tokens
        assert torch.equal(piece.row.token_ids, row.token_ids[piece.indices])
        assert torch.equal(visible(piece.row), visible(row)[piece.indices][:, piece.indices])
        assert not piece.row.advantages[~piece.row.loss_mask].any()
    assert set(torch.cat([piece.indices for piece in pieces]).tolist()) == set(range(row.num_tokens))


@settings(deadline=None, max_examples=60)
@given(trees(), st.integers(1, 80), st.sampled_from([None, 1, 3]))
def test_pieces_do_the_work_of_the_row(sequences: list[TokenizedSequence], max_tokens: int, gain: int | None) -> None:
    for row in pack(sequences, 400, gain):
        pieces = split_row(mark_fresh(row, 1), max_tokens)
        assert_same_work(row, pieces, max_tokens)
        assert_same_work(row, again(pieces, max_tokens // 2), max_tokens // 2)
        if longest_sequence(row) < row.num_tokens:
            assert all(piece.row.num_tokens < row.num_tokens for piece in split_row(row, row.num_tokens // 2))


def test_completions_of_a_prompt_leave_one_by_one() -> None:
    row = packed_group(10, [9, 14, 7])
    assert [piece.row.num_tokens for piece in split_row(row, 40)] == [40]
    assert split_row(row, 40)[0].row is row
    assert [piece.row.num_tokens for piece in split_row(row, 33)] == [33, 17]
    assert [piece.row.num_tokens for piece in split_row(row, 20)] == [19, 24, 17]
    assert longest_sequence(row) == 24
    assert [len(split_row(piece.row, 20)) for piece in split_row(row, 20)] == [1, 1, 1]


def test_every_column_is_that_of_the_token() -> None:
    [row] = pack(branching_group(0), 400, min_gain=1)
    row = replace(mark_fresh(row, 1), old_logprobs=torch.rand(row.num_tokens), ref_logprobs=torch.rand(row.num_tokens))
    assert (
        row.group_ids is not None and row.trajectory_ids is not None and set(row.trajectory_ids.tolist()) <= {*range(5)}
    )
    for piece in split_row(row, 30):
        for name in ("positions", "old_logprobs", "ref_logprobs", "policy_versions", "is_fresh", "trajectory_ids"):
            assert torch.equal(getattr(piece.row, name), getattr(row, name)[piece.indices]), name


@pytest.mark.parametrize("max_tokens", [20, 33])
def test_values_of_the_pieces_are_joined(max_tokens: int) -> None:
    row = packed_group(10, [9, 14, 7])
    pieces = split_row(row, max_tokens)
    values = torch.rand(row.num_tokens)
    assert torch.equal(join_tokens(row, pieces, [values[piece.indices] for piece in pieces]), values)
