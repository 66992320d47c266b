"""Copies a program's output into the log files of its job while it runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence

from tandem.serve.modelarts.running.ray_jobs import RayJobs, RayJobsError
from tandem.serve.modelarts.running.supervision import Supervision, log_file
from tandem.serve.modelarts.running.workers import demultiplex

logger = logging.getLogger(__name__)


class ProgramOutput:
    """The output of one Ray job. Ray gives it from its beginning, so lines that are `stored` already are skipped."""

    def __init__(
        self, ray_jobs: RayJobs, id: str, num_workers: int, supervision: Supervision, stored: Mapping[str, int]
    ):
        self._ray, self._id, self._num_workers, self._supervision = ray_jobs, id, num_workers, supervision
        self._skip = dict(stored)
        self._rest = ""
        self._num_lines = 0
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._is_finished = False

    def start(self) -> None:
        """Start to follow the output in a thread, unless it runs already."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name=f"output-{self._id}", daemon=True)
            self._thread.start()

    def finish(self) -> None:
        """Read the rest of the output after the program has ended."""
        if self._thread is not None:
            self._thread.join(10)
        with self._lock:  # from here on, a thread that lags behind adds nothing
            self._is_finished = True
        try:
            text = self._ray.output(self._id)
        except RayJobsError:
            logger.warning("The end of the output of Ray job %s can't be read", self._id, exc_info=True)
            text = ""
        self._take_lines(text.removesuffix("\n").split("\n")[self._num_lines :] if text else [])
        self._supervision.flush()

    def _follow(self) -> None:
        try:
            self._ray.follow(self._id, self._take)
        except RayJobsError:
            logger.warning("The output of Ray job %s is read after its end", self._id, exc_info=True)

    def _take(self, text: str) -> None:
        with self._lock:
            if self._is_finished:
                return
            complete, newline, self._rest = (self._rest + text).rpartition("\n")
            if newline:
                self._take_lines(complete.split("\n"))

    def _take_lines(self, lines: Sequence[str]) -> None:
        self._num_lines += len(lines)
        for rank, of_worker in demultiplex(lines, self._num_workers).items():
            file = log_file(rank)
            skipped = min(self._skip.get(file, 0), len(of_worker))
            self._skip[file] = self._skip.get(file, 0) - skipped
            self._supervision.log(file, of_worker[skipped:])
