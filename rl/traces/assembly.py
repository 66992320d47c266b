"""The rows that a job has trained, and what its learners recorded, as traces of trajectories.

A training of a token is known by its number (`PackedSequence.trace_ids`): the row says where the token lies and what
the loss got with it, the learner its logprob. A sequence is found in the row backwards from its last trained token,
through the segments that this one sees. Nothing after that token has taken part in the training.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from operator import attrgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.rl.packed_rows import PackedSequence, Segment, segments_of
from tandem.rl.traces.group_trace import SequenceTrace
from tandem.rl.traces.recording import StepTrace, trace_ids_of
from tandem.rl.traces.sequences import TracedSequence

STEP, ROW, INDEX = range(3)
PER_TOKEN = ("old_logprobs", "ref_logprobs")


def assemble(
    sequences: Sequence[TracedSequence], steps: Sequence[Sequence[PackedSequence]], recorded: StepTrace
) -> Iterator[tuple[int, list[SequenceTrace]]]:
    """Yield each traced group with its sequences, by trajectory, history and turn.

    Args:
        sequences: all of the job, in the order of their numbers.
        steps: the rows of each gradient step that was taken, before any was split for lack of memory.
        recorded: the trainings of all steps and learners.
    """
    job = _Trainings(sum(sequence.num_trained for sequence in sequences))
    for number, rows in enumerate(steps):
        for row in rows:
            job.add(number, row)
    job.learner_logprobs[recorded.ids] = recorded.logprobs
    found = defaultdict[int, list[SequenceTrace]](list)
    first = 0
    for sequence in sequences:
        own = slice(first, first + sequence.num_trained)
        first = own.stop
        if sequence.num_trained and job.places[own.start, ROW] >= 0:
            found[sequence.group].append(job.trace(sequence, own))
    for group, traces in sorted(found.items()):
        yield group, sorted(traces, key=lambda one: (one.trajectory, one.history, [turn.index for turn in one.turns]))


class _Trainings:
    """Columns with one entry for each training of a token, by its number."""

    def __init__(self, size: int) -> None:
        self.places = np.full((size, 3), -1, np.int32)
        self.learner_logprobs, self._sampling = _unknown(size), _unknown(size)
        self._size, self._rows, self._segments = size, list[PackedSequence](), dict[int, list[Segment]]()
        self._per_token: dict[str, NDArray[np.float32]] = {}

    def add(self, step: int, row: PackedSequence) -> None:
        """Read the traced trainings of a row."""
        if row.trace_ids is None:
            return
        ids = torch.cat(trace_ids_of(row))
        is_traced = ids >= 0
        indices = torch.cat([torch.arange(row.num_tokens), row.repeats.indices])[is_traced]
        numbers = ids[is_traced].numpy()
        self.places[numbers, STEP], self.places[numbers, ROW] = step, len(self._rows)
        self.places[numbers, INDEX] = indices.numpy()
        sampling = torch.cat([row.sampling_logprobs, row.repeats.sampling_logprobs])[is_traced]
        self._sampling[numbers] = sampling.numpy()
        for name in PER_TOKEN:
            values: Tensor | None = getattr(row, name)
            if values is not None:
                self._per_token.setdefault(name, _unknown(self._size))[numbers] = values[indices].numpy()
        self._rows.append(row)

    def trace(self, sequence: TracedSequence, own: slice) -> SequenceTrace:
        """Return the trace of a sequence, whose trainings have the numbers in `own`."""
        step, number, last = self.places[own.stop - 1].tolist()
        row, indices = self._rows[number], self.places[own, INDEX]
        path = self._path(number, last)
        mask = np.zeros(len(path), bool)
        mask[row.positions.numpy()[indices]] = True

        def column(values: NDArray[np.float32]) -> NDArray[np.float32]:
            spread = _unknown(len(path))
            spread[mask] = values[own]
            return spread

        advantage, weight, version = self._of_sequence(row, self.places[own.start, INDEX], own.start)
        return SequenceTrace(
            trajectory=sequence.trajectory,
            history=sequence.history,
            policy_version=None if version < 0 else version,
            gradient_step=step,
            advantage=advantage,
            weight=weight,
            turns=sequence.turns,
            token_ids=row.token_ids.numpy()[path].astype(np.int32),
            loss_mask=mask,
            sampling_logprobs=column(self._sampling),
            learner_logprobs=column(self.learner_logprobs),
            **{name: column(values) for name, values in self._per_token.items()},
        )

    @staticmethod
    def _of_sequence(row: PackedSequence, index: int, number: int) -> tuple[float, float, int]:
        """Return advantage, weight and version of the sequence of a training, which has this number at this index."""
        columns: PackedSequence | object = row
        own, repeated = trace_ids_of(row)
        if int(own[index]) != number:  # another sequence has the token
            columns, index = row.repeats, int((repeated == number).nonzero()[0])
        advantage, weight, versions = attrgetter("advantages", "weights", "policy_versions")(columns)
        return float(advantage[index]), float(weight[index]), -1 if versions is None else int(versions[index])

    def _path(self, number: int, last: int) -> NDArray[np.int64]:
        """Return the indices in a row of a sequence that ends with the token at `last`."""
        segments = self._segments.get(number)
        if segments is None:
            segments = self._segments[number] = segments_of(self._rows[number])
        segment = segments[bisect_right(segments, last, key=attrgetter("begin")) - 1]
        parts = [np.arange(segment.begin, last + 1)]
        while segment.parent is not None:
            begin = segment.parent.begin
            parts.append(np.arange(begin, begin + segment.num_seen))
            segment = segment.parent
        return np.concatenate(parts[::-1])


def _unknown(size: int) -> NDArray[np.float32]:
    return np.full(size, np.nan, np.float32)
