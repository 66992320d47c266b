"""A run's rows for TensorBoard, by version."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from tandem.runs.ledger import Row

NOT_METRICS = ("kind", "version", "batch", "job", "time")


def numbers(row: Row) -> Iterator[tuple[str, float]]:
    """Iterate over the metrics of a row, by name."""
    for name, value in row.items():
        if name not in NOT_METRICS and isinstance(value, int | float):
            yield name, float(value)


class ScalarWriter:
    """Writes an event file in `directory`.

    It writes the ledger's earlier rows again, in place of those that an earlier process wrote, so a crash leaves
    neither gaps nor duplicates.
    """

    def __init__(self, directory: Path, rows: Sequence[Row]):
        self._writer = EventFileWriter(str(directory), flush_secs=10)
        # This makes TensorBoard discard the data that it has from this step on.
        started = Event(step=0, session_log=SessionLog(status=SessionLog.START))
        if rows:
            started.wall_time = rows[0]["time"]
        self._writer.add_event(started)
        for row in rows:
            self.write(row)

    def write(self, row: Row) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers(row)]
        self._writer.add_event(Event(step=row["version"], wall_time=row["time"], summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()
