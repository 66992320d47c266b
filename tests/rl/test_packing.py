import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import trees, visible
from wire_data import ENGINE_RENDERS_OTHERWISE, chat_tokenizer, packing_vectors

from tandem.rl.batch import build_sequences, finalize
from tandem.rl.config import TrainingConfig
from tandem.rl.models.attention.masks import dense_mask
from tandem.rl.packed_rows import PackedSequence, seen_until, unpack
from tandem.rl.packing import pack
from tandem.rl.tokens.tokenizing import TokenizedSequence
from tandem.rl.trajectories import TrajectoryGroup

PACKED = [
    case
    for case in packing_vectors()
    if not case["quirk"] and case["expected"].get("packed") and case["name"] not in ENGINE_RENDERS_OTHERWISE
]


@pytest.mark.parametrize("case", PACKED, ids=lambda case: case["name"])
def test_recorded_rows(case):
    expected = case["expected"]["packed"]
    config = TrainingConfig(**case["config"])
    groups = [TrajectoryGroup.model_validate(body) for body in case["trajectory_groups"]]
    length = expected["sequence_length"]
    tokenized = [s for of_group in build_sequences(groups, chat_tokenizer(), config) for s in of_group]
    sequences = finalize([s for s in tokenized if s.num_tokens <= length], config.advantage_balance or 0.0)
    if case["pack_results"]:
        rows = pack(sequences, length)
    else:  # recorded with one sequence per row
        rows = [row for sequence in sequences for row in pack([sequence], length)]

    assert [row.num_tokens for row in rows] == expected["row_lengths"]
    for index, row in enumerate(rows):
        assert row.token_ids.tolist() == expected["tokens"][index]
        assert row.positions.tolist() == expected["input_pos"][index]
        assert row.loss_mask.int().tolist() == expected["assistant_mask"][index]
        assert visible(row).sum(1).tolist() == expected["visible_keys"][index]
        assert first_seen(row.segment_ids.tolist()) == first_seen(expected["group_ids"][index])
        for name, values in [
            ("logprobs", row.sampling_logprobs),
            ("advantages", row.advantages),
            ("weights", row.weights),
        ]:
            wanted = torch.tensor([math.nan if x is None else x for x in expected[name][index]])
            torch.testing.assert_close(values, wanted, rtol=2e-6, atol=2e-6, equal_nan=True)


def first_seen(ids: list[int]) -> list[int]:
    """Return the ids renumbered in order of first appearance."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(id_, len(numbers)) for id_ in ids]


def sequence_of(group: int, prompt: list[int], own: list[int], mask: list[bool]) -> TokenizedSequence:
    ids, loss_mask = torch.tensor(prompt + own), torch.tensor([False] * len(prompt) + mask)
    return TokenizedSequence(
        *(group, 0, 0, ids, loss_mask),
        sampling_logprobs=torch.where(loss_mask, -ids.double(), math.nan),
        choice_offsets=(len(prompt),),
        advantage=float(own[0]),
        weight=float(len(own)),
        prompt_length=max(len(prompt) - 1, 0),
        policy_version=group,
    )


@st.composite
def jobs(draw: st.DrawFn) -> list[TokenizedSequence]:
    """Draw groups of sequences: a shared prompt of 1 to 6 tokens, then 1 to 8 own tokens, at least one trained."""
    sequences = []
    for group in range(draw(st.integers(1, 3))):
        prompt = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
        for _ in range(draw(st.integers(1, 4))):
            own = draw(st.lists(st.integers(1, 5), min_size=1, max_size=8))
            mask = draw(st.lists(st.booleans(), min_size=len(own), max_size=len(own)))
            if any(mask):
                sequences.append(sequence_of(group, prompt, own, mask))
    return sequences


JOBS, LENGTHS = st.one_of(jobs(), trees()), st.integers(37, 200)
GAINS = st.one_of(st.integers(1, 8), st.none())


def test_a_prompt_is_computed_once_in_a_row_and_again_in_the_next():
    sequences = [sequence_of(0, [1, 2, 3], own, [True] * len(own)) for own in ([4, 5], [6], [7, 8])]
    first, second = pack(sequences, 7)
    # Each completion has a copy of the last prompt token, because that predicts the completion's first token.
    assert first.token_ids.tolist() == [1, 2, 3, 4, 5, 3, 6]
    assert first.positions.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert first.segment_ids.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert first.parent_ids.tolist() == [0, 0, 0, 0, 0, 0, 0]
    assert first.loss_mask.tolist() == [False, False, False, True, True, False, True]
    assert first.advantages.tolist() == [0, 0, 0, 4, 4, 0, 6]
    assert second.token_ids.tolist() == [1, 2, 3, 7, 8]


def test_groups_in_a_row_do_not_see_each_other():
    sequences = [sequence_of(group, [1, 2], [3], [True]) for group in (0, 1)]
    [row] = pack(sequences, 10)
    assert row.segment_ids.tolist() == [0, 1, 1, 2, 3, 3]
    assert row.parent_ids.tolist() == [0, 0, 0, 2, 2, 2]


def test_without_a_shared_prompt_a_sequence_is_its_own_root():
    sequences = [replace(sequence_of(0, [1, 2], [3], [True]), prompt_length=0) for _ in range(2)]
    [row] = pack(sequences, 10)
    assert row.segment_ids.tolist() == row.parent_ids.tolist() == [0, 0, 0, 1, 1, 1]


@settings(deadline=None)
@given(JOBS, LENGTHS, GAINS)
def test_unpacking_gives_back_every_sequence_that_is_not_part_of_another(sequences, length, min_gain):
    found = Counter()
    for row in pack(sequences, length, min_gain):
        for indices in unpack(row):
            assert row.positions[indices].tolist() == list(range(len(indices)))
            found[tuple(row.token_ids[indices].tolist())] += 1
    wanted = Counter(tuple(s.token_ids.tolist()) for s in sequences)
    assert not found - wanted
    assert all(any(other[: len(ids)] == ids for other in found) for ids in wanted - found)
    if min_gain is None:
        assert found == wanted


def test_unpacked_completions_share_the_indices_of_their_prompt():
    [row] = pack([sequence_of(0, [1, 2, 3], own, [True] * len(own)) for own in ([4, 5], [6])], 7)
    assert [indices.tolist() for indices in unpack(row)] == [[0, 1, 2, 3, 4], [0, 1, 5, 6]]


def test_completions_are_the_segments_with_trained_tokens():
    [row] = pack([sequence_of(0, [1, 2, 3], own, [True] * len(own)) for own in ([4, 5], [6])], 7)
    assert row.num_completions == 2  # the shared prompt isn't counted
    assert replace(row, loss_mask=row.segment_ids == 2).num_completions == 1
    assert replace(row, loss_mask=torch.zeros(7, dtype=torch.bool)).num_completions == 1


def test_every_token_knows_the_version_that_sampled_its_trajectory():
    first, second = (replace(sequence_of(0, [1, 2], [3], [True]), policy_version=v) for v in (4, None))
    [row] = pack([first, second], 10)
    assert row.policy_versions.tolist() == [4, 4, 4, -1, -1]  # a shared prompt has the version of the first sequence


def test_dtypes_and_moving():
    [row] = pack([sequence_of(0, [1, 2], [3], [True])], 10)
    for name in ("token_ids", "positions", "segment_ids", "parent_ids"):
        assert getattr(row, name).dtype == torch.int64
    for name in ("sampling_logprobs", "advantages", "weights"):
        assert getattr(row, name).dtype == torch.float32
    moved = row.to("meta")
    assert moved.token_ids.device.type == "meta" and moved.old_logprobs is None


# Deeper trees


@settings(deadline=None)
@given(JOBS, LENGTHS, GAINS)
def test_every_token_sees_exactly_its_prefix(sequences, length, min_gain):
    for row in pack(sequences, length, min_gain):
        seen = visible(row)
        assert torch.equal(dense_mask(row)[0, 0], seen)
        for query, keys in enumerate(seen):
            assert row.positions[keys].tolist() == list(range(int(row.positions[query]) + 1))


@settings(deadline=None)
@given(JOBS, LENGTHS, GAINS)
def test_every_sequence_trains_its_own_tokens_once(sequences, length, min_gain):
    rows = pack(sequences, length, min_gain)
    assert all(row.num_tokens <= length for row in rows)
    found = Counter(trained for row in rows for trained in trained_sequences(row))
    assert found == Counter(
        (
            tuple(s.token_ids[: int(s.loss_mask.nonzero()[-1]) + 1].tolist()),
            tuple(s.loss_mask.nonzero().squeeze(1).tolist()),
            tuple(s.sampling_logprobs[s.loss_mask].float().nan_to_num(1).tolist()),
            *torch.tensor([s.advantage, s.weight]).tolist(),
            s.policy_version,
        )
        for s in sequences
    )
    assert sum(row.num_trained_tokens for row in rows) == sum(s.num_trained_tokens for s in sequences)
    assert sum(row.num_completions for row in rows) == len(sequences)


def trained_sequences(row: PackedSequence) -> list[tuple]:
    """Return of each completion: its tokens, the positions that it trains, and their values."""
    own, repeats = row.loss_mask.nonzero().squeeze(1), row.repeats
    indices = torch.cat([own, repeats.indices])
    completions = torch.cat([row.segment_ids[own], repeats.completion_ids])
    names = ("sampling_logprobs", "advantages", "weights", "policy_versions")
    columns = [torch.cat([getattr(row, name)[own], getattr(repeats, name)]) for name in names]
    seen = visible(row)
    found = []
    for completion in completions.unique().tolist():
        mine = (completions == completion).nonzero().squeeze(1)
        mine = mine[row.positions[indices[mine]].argsort()]
        logprobs, *others = (column[mine] for column in columns)
        tokens = row.token_ids[seen[indices[mine[-1]]]].tolist()
        for index in indices[mine]:  # each is trained after the same prefix
            assert row.token_ids[seen[index]].tolist() == tokens[: int(row.positions[index]) + 1]
        positions, known = row.positions[indices[mine]].tolist(), logprobs.nan_to_num(1).tolist()
        found.append((tuple(tokens), tuple(positions), tuple(known), *(float(v.unique()) for v in others)))
    return found


@settings(deadline=None)
@given(trees())
def test_every_prefix_is_computed_once(sequences):
    [row] = pack(sequences, 1000, min_gain=1)
    prefixes = {(s.group, *s.token_ids[:n].tolist()) for s in sequences for n in range(1, s.num_tokens + 1)}
    groups = {s.group: s.prompt_length > 0 for s in sequences}
    # Each segment begins with a copy of a token, except for the first one of a group, or two if the first is a prompt.
    num_copies = len(row.segment_ids.unique()) - len(groups) - sum(groups.values())
    assert row.num_tokens == len(prefixes) + num_copies


def test_a_branch_by_hand():
    """B leaves A in its middle, C leaves B, and D is the beginning of A. Tokens 3 and 4 are trained by A, B and D."""
    trained = [False, False, False, True, True]
    a = sequence_of(0, [], [1, 2, 3, 4, 5, 6, 7], [*trained, False, True])
    b = sequence_of(0, [], [1, 2, 3, 4, 5, 8, 9], [*trained, True, True])
    c = sequence_of(0, [], [1, 2, 3, 4, 5, 8, 0], [False] * 6 + [True])
    d = sequence_of(0, [], [1, 2, 3, 4, 5], trained)
    named = [replace(s, advantage=v) for s, v in zip((a, b, c, d), (10.0, 20.0, 30.0, 40.0), strict=True)]
    [row] = pack([named[i] for i in (3, 0, 1, 2)], 100, min_gain=1)
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 5, 8, 9, 8, 0]
    assert row.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 5, 6]
    assert row.segment_ids.tolist() == [0] * 7 + [1] * 3 + [2] * 2
    assert row.parent_ids.tolist() == [0] * 10 + [1] * 2
    assert row.loss_mask.int().tolist() == [0, 0, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    assert row.advantages.tolist() == [0, 0, 0, 10, 10, 0, 10, 0, 20, 20, 0, 30]
    repeats = row.repeats
    assert repeats.indices.tolist() == [3, 4, 3, 4]
    assert sorted(zip(repeats.advantages.tolist(), repeats.completion_ids.tolist(), strict=True)) == [
        (20, 1), (20, 1), (40, 3), (40, 3),
    ]  # fmt: skip
    assert [own.tolist() for own in unpack(row)] == [
        [0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 7, 8, 9], [0, 1, 2, 3, 7, 10, 11],
    ]  # fmt: skip
    assert seen_until(row).tolist() == [12, 12, 12, 12, 7, 7, 7, 12, 10, 10, 12, 12]


def test_branches_of_a_tree_stay_together_whatever_the_order():
    """Two trunks with three sequences each fill two rows, although the input alternates between the trunks."""
    trunks = [list(range(first, first + 20)) for first in (0, 30)]
    turns = [sequence_of(0, [99], [*trunks[n % 2], 60 + n], [False] * 20 + [True]) for n in range(6)]
    rows = pack(turns, 26, min_gain=5)
    assert [row.num_tokens for row in rows] == [26, 26]
    assert [set(row.token_ids.tolist()) & {0, 30} for row in rows] == [{0}, {30}]


def test_a_prefix_that_saves_little_is_not_shared():
    sequences = [sequence_of(0, [1, 2, 3], [4, 5, last], [True] * 3) for last in (6, 7)]
    assert [row.segment_ids.unique().tolist() for row in pack(sequences, 20, min_gain=3)] == [[0, 1, 2]]
    [row] = pack(sequences, 20, min_gain=2)
    assert row.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 5, 7]
    assert row.parent_ids.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
