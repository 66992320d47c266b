"""Log files of job versions, stored as chunks of lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import select

from tandem.serve.errors import NotFoundError
from tandem.serve.modelarts.store.claims import ClaimedUserJob, held_version
from tandem.serve.modelarts.store.lookups import find_version, log_sizes
from tandem.serve.modelarts.store.tables import UserJobLogRow, UserJobVersionRow
from tandem.serve.store.database import Database

PIECES_PER_QUERY = 50
SEARCHED_AT_ONCE = 5_000
MAX_SEARCHED_LINES = 100_000
"""By one search, which the next one continues."""


@dataclass
class Found:
    """The result of a search, and how far it came."""

    end_line: int
    lines: list[tuple[int, str]] = field(default_factory=list)
    is_end: bool = False
    """The file has no more lines now."""


class JobLogs:
    """Each worker writes one log file. Lines are counted from 1."""

    def __init__(self, database: Database):
        self._database = database

    def files(self, project: str, job_id: int, version_id: int) -> Sequence[str]:
        """Return the names of a version's log files. Raises NotFoundError."""
        query = select(UserJobLogRow.file).where(UserJobLogRow.version_id == version_id).distinct()
        with self._database.read() as session:
            find_version(session, project, job_id, version_id)
            return session.scalars(query.order_by(UserJobLogRow.file)).all()

    def size(self, project: str, job_id: int, version_id: int, file: str) -> int:
        """Return the number of lines of a log file. Raises NotFoundError."""
        with self._database.read() as session:
            find_version(session, project, job_id, version_id)
            num_lines = log_sizes(session, version_id).get(file)
        if not num_lines:
            raise NotFoundError(f"Version {version_id} has no log file {file!r}.", "log_file_not_found", "log_file")
        return num_lines

    def read(self, version_id: int, file: str, first_line: int, num_lines: int) -> list[str]:
        """Return up to `num_lines` lines of a log file."""
        log = UserJobLogRow
        query = (
            select(log)
            .where(log.version_id == version_id, log.file == file)
            .where(log.first_line < first_line + num_lines, log.first_line + log.num_lines > first_line)
        )
        lines: list[str] = []
        with self._database.read() as session:
            for row in session.scalars(query.order_by(log.first_line)):
                begin = max(0, first_line - row.first_line)
                lines += row.text.split("\n")[begin : first_line + num_lines - row.first_line]
        return lines

    def pieces(self, version_id: int, file: str) -> Iterator[str]:
        """Yield a log file as far as it goes now, in pieces of whole lines."""
        log, next_line = UserJobLogRow, 1
        while True:
            query = select(log).where(log.version_id == version_id, log.file == file, log.first_line >= next_line)
            with self._database.read() as session:
                rows = session.scalars(query.order_by(log.first_line).limit(PIECES_PER_QUERY)).all()
            for row in rows:
                yield f"{row.text}\n"
                next_line = row.first_line + row.num_lines
            if len(rows) < PIECES_PER_QUERY:
                return

    def search(self, version_id: int, file: str, text: str, after_line: int, limit: int) -> Found:
        """Find lines with a text, in upper or lower case, among the MAX_SEARCHED_LINES after a line."""
        wanted, found, last = text.casefold(), Found(after_line), after_line + MAX_SEARCHED_LINES
        while found.end_line < last:
            lines = self.read(version_id, file, found.end_line + 1, SEARCHED_AT_ONCE)
            for line in lines:
                found.end_line += 1
                if wanted in line.casefold():
                    found.lines.append((found.end_line, line))
                    if len(found.lines) == limit:
                        return found
            if len(lines) < SEARCHED_AT_ONCE:
                found.is_end = True
                return found
        return found

    def append(self, job: ClaimedUserJob, file: str, lines: Sequence[str]) -> None:
        """Add lines to a log file. Raises LeaseLostError."""
        if not lines:
            return
        text = "\n".join(lines).replace("\x00", "\ufffd")  # PostgreSQL's text type can't hold NUL
        with self._database.write() as session:
            held_version(session, job)
            first_line = log_sizes(session, job.version_id).get(file, 0) + 1
            session.add(
                UserJobLogRow(
                    version_id=job.version_id, file=file, first_line=first_line, num_lines=len(lines), text=text
                )
            )

    def sizes(self, job: ClaimedUserJob) -> dict[str, int]:
        """Return the number of lines of each log file."""
        with self._database.read() as session:
            return log_sizes(session, job.version_id)

    def sizes_since_submission(self, job: ClaimedUserJob) -> dict[str, int]:
        """Return how many lines each log file has gained since the job was last submitted to Ray."""
        with self._database.read() as session:
            offsets = session.get_one(UserJobVersionRow, job.version_id).log_offsets
            sizes = log_sizes(session, job.version_id)
        return {file: size - offsets.get(file, 0) for file, size in sizes.items()}
