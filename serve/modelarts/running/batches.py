"""Batches of recorded trajectory groups, read from JSON Lines files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from tandem.rl.trajectories import TrajectoryGroup
from tandem.serve.api.bodies.problems import problems_of
from tandem.serve.modelarts.running.supervision import JobFailedError
from tandem.serve.modelarts.settings.project_storage import Location


@dataclass(frozen=True)
class Batch:
    """The trajectory groups of one training job."""

    index: int
    epoch: int
    lines: Sequence[bytes]
    """One group per line, as read."""
    places: Sequence[str]
    """File and line number of each group."""

    def check(self) -> None:
        """Raise JobFailedError, which names the place, for a line that is no valid trajectory group."""
        for place, line in zip(self.places, self.lines, strict=True):
            try:
                TrajectoryGroup.model_validate_json(line)
            except ValidationError as error:
                first = problems_of(error.errors(include_url=False, include_input=False, include_context=False))[0]
                raise JobFailedError(f"{place}: {f'{first.path}: ' if first.path else ''}{first.msg}") from None


def read_batches(data: Sequence[Location], size: int, num_epochs: int) -> Iterator[Batch]:
    """Read the data once per epoch. The last batch of an epoch may be smaller than `size`."""
    index = 0
    for epoch in range(1, num_epochs + 1):
        groups: list[tuple[str, bytes]] = []
        for group in _lines(data):
            groups.append(group)
            if len(groups) == size:
                yield _batch(index, epoch, groups)
                index, groups = index + 1, []
        if groups:
            yield _batch(index, epoch, groups)
            index += 1


def _batch(index: int, epoch: int, groups: Sequence[tuple[str, bytes]]) -> Batch:
    return Batch(index, epoch, [line for _, line in groups], [place for place, _ in groups])


def _lines(data: Sequence[Location]) -> Iterator[tuple[str, bytes]]:
    """Yield place and text of each line that isn't empty. In directories, .jsonl files are read, sorted by name."""
    for location in data:
        for file in location.files():
            if location.is_directory() and not file.endswith(".jsonl"):
                continue
            for number, line in enumerate(location.lines(file), 1):
                if stripped := line.strip():
                    yield f"{file.rpartition('/')[2]} line {number}", stripped
