"""Datums in rows: each lies whole in one, sees itself alone, and common prefixes are there once."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from plain_losses import call_datums
from small_models import VOCABULARY
from trees import visible

from tandem.rl.datums.datum import Datum
from tandem.rl.datums.rows import MIN_GAIN, DatumRow, pack_datums, split_datums
from tandem.rl.packed_rows import seen_until


def ids_datum(*ids: int, num_targets: int | None = None) -> Datum:
    """Return a datum whose targets and weights tell where they come from."""
    length = len(ids)
    shape = (length,) if num_targets is None else (length, num_targets)
    targets = torch.arange(torch.Size(shape).numel()).view(shape) + 10 * ids[0]
    return Datum(torch.tensor(ids), targets, {"weights": targets / 2})


PREFIX = tuple(range(100, 100 + MIN_GAIN + 1))


def test_a_common_prefix_is_there_once_and_no_token_is_repeated() -> None:
    datums = [ids_datum(*PREFIX, 1, 2), ids_datum(*PREFIX, 3), ids_datum(*PREFIX, 1, 2), ids_datum(*PREFIX)]
    [row] = pack_datums(datums, 100, True)
    assert row.num_tokens == len(PREFIX) + 3
    assert row.datums == (0, 2, 1, 3)
    assert row.row.token_ids.tolist() == [*PREFIX, 1, 2, 3]
    assert row.row.positions.tolist() == [*range(len(PREFIX) + 2), len(PREFIX)]
    n = len(PREFIX)
    assert row.places.tolist() == [*range(n + 2), *range(n + 2), *range(n), n + 2, *range(n)]


def test_a_branch_must_save_enough() -> None:
    few, enough = PREFIX[: MIN_GAIN - 1], PREFIX
    assert pack_datums([ids_datum(*few, 1), ids_datum(*few, 2)], 100, True)[0].num_tokens == 2 * MIN_GAIN
    assert pack_datums([ids_datum(*enough, 1), ids_datum(*enough, 2)], 100, True)[0].num_tokens == len(enough) + 2


def test_a_row_ends_before_a_datum_that_does_not_fit() -> None:
    datums = [ids_datum(*PREFIX, *range(10)), ids_datum(*PREFIX, *range(20, 30)), ids_datum(*range(50))]
    rows = pack_datums(datums, 30, True)
    assert [row.datums for row in rows] == [(0,), (1,), (2,)]
    assert [row.num_tokens for row in rows] == [27, 27, 50]


def test_models_with_recurrent_layers_share_nothing() -> None:
    datums = [ids_datum(*PREFIX, 1), ids_datum(*PREFIX, 2)]
    [row] = pack_datums(datums, 100, False)
    assert row.row.token_ids.tolist() == [*PREFIX, 1, *PREFIX, 2]
    assert torch.equal(row.row.segment_ids, row.row.parent_ids)
    assert row.datum_ids.tolist() == [0] * 18 + [1] * 18


def test_targets_of_a_position_stand_together() -> None:
    datums = [ids_datum(5, 6, num_targets=3), ids_datum(7, 8)]
    [row] = pack_datums(datums, 100, True)
    assert row.shapes == ((2, 3), (2,))
    assert row.places.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert row.targets.tolist() == [50, 51, 52, 53, 54, 55, 70, 71]
    assert row.values["weights"].tolist() == [25, 25.5, 26, 26.5, 27, 27.5, 35, 35.5]
    assert row.datum_ids.tolist() == [0] * 6 + [1] * 2


def test_a_datum_without_an_optional_value_has_nan() -> None:
    [row] = pack_datums([ids_datum(5, 6), Datum(torch.tensor([7]), torch.tensor([8]), {})], 100, True)
    assert row.values["weights"][:2].tolist() == [25, 25.5]
    assert row.values["weights"][2:].isnan().all()


def same(found: Datum, expected: Datum) -> bool:
    return (
        torch.equal(found.token_ids, expected.token_ids)
        and torch.equal(found.targets, expected.targets)
        and found.values.keys() == expected.values.keys()
        and all(torch.equal(found.values[name], value) for name, value in expected.values.items())
    )


def check_rows(rows: list[DatumRow], datums: dict[int, Datum]) -> None:
    """Check that rows have all datums, and that each position sees exactly its datum up to itself."""
    found: dict[int, Datum] = {}
    for row in rows:
        found |= dict(zip(row.datums, row.unpacked(), strict=True))
        sees = visible(row.row)
        index = torch.arange(row.num_tokens)
        assert torch.equal(sees, (index <= index[:, None]) & (index[:, None] < seen_until(row.row)[None]))
        for number in range(len(row.datums)):
            own = row.places[row.datum_ids == number].unique_consecutive()
            assert torch.equal(row.row.positions[own], torch.arange(len(own)))
            for position, place in enumerate(own.tolist()):
                assert sorted(own[: position + 1].tolist()) == sees[place].nonzero().squeeze(1).tolist()
    assert found.keys() == datums.keys()
    assert all(same(found[number], datum) for number, datum in datums.items())


@st.composite
def many_datums(draw: st.DrawFn) -> list[Datum]:
    """Draw datums of which each leaves an earlier one somewhere, extends, repeats or begins it."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sequences: list[torch.Tensor] = []
    for _ in range(draw(st.integers(1, 8))):
        own = torch.randint(0, VOCABULARY, (draw(st.integers(0, 30)),), generator=generator)
        if sequences and draw(st.booleans()):
            origin = draw(st.sampled_from(sequences))
            own = torch.cat([origin[: draw(st.integers(1, len(origin)))], own])
        sequences.append(own if len(own) else torch.tensor([1]))
    return [
        Datum(ids, torch.randint(0, VOCABULARY, ids.shape), {"weights": torch.rand(ids.shape)}) for ids in sequences
    ]


@given(many_datums(), st.integers(1, 150))
def test_every_datum_lies_whole_in_one_row_and_sees_itself_alone(datums: list[Datum], packed_length: int) -> None:
    rows = pack_datums(datums, packed_length, True)
    check_rows(rows, dict(enumerate(datums)))
    assert all(row.num_tokens <= max(packed_length, row.longest) for row in rows)


@given(many_datums(), st.integers(1, 60))
def test_a_row_is_split_into_shorter_ones_of_the_same_datums(datums: list[Datum], packed_length: int) -> None:
    for row in pack_datums(datums, 150, True):
        pieces = split_datums(row, packed_length, True)
        check_rows(pieces, {number: datums[number] for number in row.datums})
        assert all(piece.num_tokens <= max(packed_length, piece.longest) for piece in pieces)
        if packed_length < row.num_tokens > row.longest:
            assert all(piece.num_tokens < row.num_tokens for piece in pieces)


def test_rows_are_the_same_for_the_same_datums() -> None:
    first, second = (pack_datums(call_datums("gspo"), 60, True) for _ in range(2))
    assert [row.datums for row in first] == [row.datums for row in second]
    assert all(torch.equal(a.row.token_ids, b.row.token_ids) for a, b in zip(first, second, strict=True))
