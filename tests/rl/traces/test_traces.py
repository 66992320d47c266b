"""What the learner used for each trained token comes back under its trajectory, and recording it changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from small_models import randomise_adapter
from trees import branching_group, trees

from tandem.rl.config import LossConfig
from tandem.rl.gradient_step.row_splitting import split_row
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence, one_segment, pack
from tandem.rl.policy import Policy
from tandem.rl.tokens.tokenizing import TokenizedSequence
from tandem.rl.traces.assembly import assemble
from tandem.rl.traces.choosing import chosen_groups, traced_row
from tandem.rl.traces.recording import StepRecorder, StepTrace, trace_ids_of
from tandem.rl.traces.sequences import traced_sequences
from tandem.rl.traces.trace_file import TraceFile, TraceFileError, write_traces


@pytest.fixture
def learner(qwen3_path: Path) -> Learner:
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


def two_groups() -> list[TokenizedSequence]:
    return [*branching_group(1), *(replace(one, group=1) for one in branching_group(2))]


def recorded(rows: Sequence[PackedSequence], value: float = 0.0) -> StepTrace:
    """Return a trace in which each training has its own number as its logprob."""
    ids = np.concatenate([torch.cat(trace_ids_of(row)).numpy() for row in rows if row.trace_ids is not None])
    ids = ids[ids >= 0]
    return StepTrace(ids, (ids + value).astype(np.float32))


@given(trees())
@settings(deadline=None, max_examples=50)
def test_every_training_has_one_number_and_leads_back_to_its_sequence(sequences: list[TokenizedSequence]) -> None:
    sequences = [one for one in sequences if one.num_trained_tokens]
    if not sequences:
        return
    rows = pack(sequences, 200, min_gain=1, first_trace_id=0)
    pieces = [piece.row for row in rows for piece in split_row(row, 20)]
    total = sum(one.num_trained_tokens for one in sequences)
    for cut in (rows, pieces):
        assert sorted(recorded(cut).ids.tolist()) == list(range(total))
    found = dict(assemble(traced_sequences(sequences), [rows[:1], rows[1:]], recorded(pieces)))
    assert sum(map(len, found.values())) == len(sequences)
    first = 0
    for one in sequences:
        [trace] = [t for t in found[one.group] if t.trajectory == one.trajectory]
        last = int(one.loss_mask.nonzero()[-1]) + 1
        assert trace.token_ids.tolist() == one.token_ids[:last].tolist()
        assert trace.loss_mask.tolist() == one.loss_mask[:last].tolist()
        np.testing.assert_array_equal(
            trace.sampling_logprobs[trace.loss_mask], one.sampling_logprobs[one.loss_mask].float()
        )
        assert trace.advantage == np.float32(one.advantage)
        assert trace.weight == np.float32(one.weight)
        assert trace.policy_version == one.policy_version
        assert trace.learner_logprobs[trace.loss_mask].tolist() == list(range(first, first + one.num_trained_tokens))
        first += one.num_trained_tokens


def test_recorded_logprobs_are_those_of_a_plain_forward_pass(learner: Learner) -> None:
    sequences = two_groups()
    rows = pack(sequences, 80, min_gain=1, first_trace_id=0)
    assert len(rows) > 1
    with torch.no_grad():
        alone = [learner.policy.logprobs(one_segment(one.token_ids))[0][:-1] for one in sequences]
    parts = []
    learner.forward_backward(rows[:1], LossConfig())
    learner.forward_backward(rows[1:], LossConfig())
    learner.optim_step(0.01)
    parts.append(learner.trace)
    found = dict(assemble(traced_sequences(sequences), [rows], StepTrace.joined(parts)))
    for one, expected in zip(sequences, alone, strict=True):
        [trace] = [t for t in found[one.group] if t.trajectory == one.trajectory]
        mask = one.loss_mask[1:]
        torch.testing.assert_close(
            torch.from_numpy(trace.learner_logprobs[trace.loss_mask]), expected[mask], rtol=0, atol=1e-5
        )


def test_recording_changes_no_bit_of_the_update(learner: Learner) -> None:
    sequences, start = two_groups(), learner.state()
    ends = []
    for first in (None, 0):
        learner.load_state(start)
        rows = pack(sequences, 80, min_gain=1, first_trace_id=first)
        metrics = [learner.step(rows, LossConfig(), 0.01) for _ in range(2)]
        ends.append((metrics, learner.state()))
        assert bool(len(learner.trace.ids)) == (first is not None)
    (plain, without), (traced, recorded_too) = ends
    assert plain == traced
    for name, tensor in without.adapter.items():
        assert torch.equal(tensor, recorded_too.adapter[name])


def test_a_step_that_fails_leaves_no_trace(learner: Learner) -> None:
    rows = pack(branching_group(1), 80, first_trace_id=0)
    learner.step(rows, LossConfig(), 0.01)
    num_first = len(learner.trace.ids)
    learner.forward_backward(rows, LossConfig())
    learner.begin()  # discards what has accumulated
    learner.step([], LossConfig(), 0.01)
    assert (num_first > 0, len(learner.trace.ids)) == (True, 0)


def test_a_recorder_keeps_nothing_of_rows_that_are_not_traced() -> None:
    [row] = pack(branching_group(1), 200)
    recorder = StepRecorder()
    recorder.add(row, torch.zeros(row.num_tokens))
    assert len(recorder.take().ids) == 0


def test_a_file_gives_back_each_group_and_counts_what_it_lacks() -> None:
    sequences = two_groups()
    rows = [
        replace(row, old_logprobs=torch.arange(row.num_tokens) / 7) for row in pack(sequences, 80, first_trace_id=0)
    ]
    groups = list(assemble(traced_sequences(sequences), [rows[:1], rows[1:]], recorded(rows, 0.5)))
    content = write_traces(groups, "rl", {7: 30, 9: 12})
    file = TraceFile.open(BytesIO(content))
    assert (file.table.num_trained_not_kept, file.table.num_groups_not_kept) == (42, 2)
    assert file.table.num_trained == sum(one.num_trained_tokens for one in sequences)
    assert file.group(7) is None
    for group, expected in groups:
        read = file.group(group)
        assert read is not None and len(read) == len(expected)
        for ours, theirs in zip(read, expected, strict=True):
            for name, value in vars(theirs).items():
                if isinstance(value, np.ndarray):
                    np.testing.assert_array_equal(getattr(ours, name), value, name)
                else:
                    assert getattr(ours, name) == value, name
    assert content.startswith(b"TDMTRC")
    with pytest.raises(TraceFileError):
        TraceFile.open(BytesIO(b"{}"))


def test_shared_prefixes_are_stored_once() -> None:
    """Eight sequences on a prompt of 5,000 tokens take little more than one."""
    generator = torch.Generator().manual_seed(3)
    prompt = torch.randint(1, 30_000, (5000,), generator=generator)

    def sequence(number: int) -> TokenizedSequence:
        ids = torch.cat([prompt, torch.randint(1, 30_000, (20,), generator=generator)])
        mask = torch.arange(len(ids)) >= 5000
        return TokenizedSequence(0, number, 0, ids, mask, torch.full((len(ids),), -1.0).double(), (5000,))

    def size(number: int) -> int:
        sequences = [replace(sequence(index), prompt_length=4999) for index in range(number)]
        rows = pack(sequences, 6000, first_trace_id=0)
        return len(write_traces(assemble(traced_sequences(sequences), [rows], recorded(rows)), "rl", {}))

    assert size(8) < 1.2 * size(1)


def test_what_does_not_fit_is_left_out_by_groups_spread_over_the_job() -> None:
    groups = [replace(one, group=group) for group in range(10) for one in branching_group(group + 1)]
    rows = pack(groups, 150, first_trace_id=0)
    traced = traced_sequences(groups)
    everything, none_left = chosen_groups(traced, rows, 1 << 20)
    assert (everything, none_left) == (set(range(10)), {})
    few, left = chosen_groups(traced, rows, 1 << 20, max_groups=3)
    assert len(few) == 3 and few | set(left) == everything and max(few) - min(few) >= 4
    assert left == {g: sum(one.num_trained for one in traced if one.group == g) for g in everything - few}
    small, _ = chosen_groups(traced, rows, 3000)
    assert 0 < len(small) < 10
    steps = [[traced_row(row, few) for row in rows]]
    assert {group for group, _ in assemble(traced, steps, recorded(steps[0]))} == few
    untouched = pack(groups, 150)
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(untouched, steps[0], strict=True))
    assert traced_row(rows[0], set()).trace_ids is None
