"""Checks of payloads that are still arriving, so that little is left to do once the last byte is here.

The options of a job may stand at the end of its body. So the groups are checked under the default options, and the
options that this read are recorded: where the job has the same values for these, the result is that of the job.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import IO, Any, cast

from tandem.cluster.payloads.reading import groups_of, split_elements
from tandem.cluster.telemetry.context import in_this_context
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import RLError
from tandem.rl.trajectories import TrajectoryGroup

logger = logging.getLogger(__name__)
POLL_S = 0.005
PATIENCE_S = 10.0
"""The time to wait for a body, in all: the rest of one that arrives more slowly is checked once it is here."""
MAX_AT_ONCE = 2
MAX_KEPT = 16
"""Results, of which the oldest is dropped: a request that was given up never asks."""
_UNSET = {
    "scale_rewards": True,
    "normalize_advantages": True,
    "allow_training_without_logprobs": False,
    "kl_penalty_coef": 0.0,
    "kimi_k2_tau": 0.0,
}
"""What None stands for: clients may send all options."""

Check = Callable[[Iterator[TrajectoryGroup], TrainingConfig], None]
"""Raises an RLError for groups that can't be trained on with these options."""


class ArrivingFile:
    """A file that another process appends to: reading waits for more.

    Raises TimeoutError after PATIENCE_S in all, and once the file was removed.
    """

    def __init__(self, path: Path):
        self._path, self._waited_s = path, 0.0
        self._file = open(path, "rb", buffering=0)

    def read(self, size: int) -> bytes:
        while True:
            if data := self._file.read(size):
                return data
            if self._waited_s >= PATIENCE_S or not os.fstat(self._file.fileno()).st_nlink:
                raise TimeoutError(f"{self._path} doesn't grow.")
            time.sleep(POLL_S)
            self._waited_s += POLL_S

    def close(self) -> None:
        self._file.close()


class RecordedOptions:
    """The options of a job, which records what is read."""

    def __init__(self, options: TrainingConfig):
        self._options = options
        self.values: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = self.values[name] = getattr(self._options, name)
        return value


class EarlyChecks:
    """The checks of one process.

    early.begin(path, check, policy)    # as soon as the body begins to arrive
    early.is_good(path, config)         # once it is here
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_running = 0
        self._found: OrderedDict[Path, Future[tuple[dict[str, Any], RLError | None]]] = OrderedDict()

    def begin(self, path: Path, check: Check, policy: str) -> None:
        """Begin to check the body in a file (JSON, zstd) that grows, in a thread, unless there are too many.

        `policy` is the name of the trained model, as in `read_groups`.
        """
        with self._lock:
            if self._num_running == MAX_AT_ONCE:
                return
            self._num_running += 1
            found = self._found[path] = Future[tuple[dict[str, Any], RLError | None]]()
            while len(self._found) > MAX_KEPT:
                self._found.popitem(last=False)
        work = in_this_context(lambda: self._run(path, check, policy, found))
        threading.Thread(target=work, name="early-check", daemon=True).start()

    def is_good(self, path: Path, config: TrainingConfig) -> bool:
        """Return True if the whole body was found good for these options; False if it has to be checked now.

        Waits for a check that is at its end. Raises the RLError that was found.
        """
        with self._lock:
            found = self._found.pop(path, None)
        if found is None:
            return False
        try:
            values, error = found.result()
        except Exception:  # it arrived too slowly, or isn't whole
            return False
        if any(_meant(name, getattr(config, name)) != _meant(name, value) for name, value in values.items()):
            return False
        if error is not None:
            raise error
        return True

    def _run(self, path: Path, check: Check, policy: str, found: Future[tuple[dict[str, Any], RLError | None]]) -> None:
        options = RecordedOptions(TrainingConfig())
        try:
            file = ArrivingFile(path)
            try:
                elements = split_elements(cast(IO[bytes], file), str(path), is_arriving=True)
                groups = groups_of(elements, policy=policy)
                check(groups, cast(TrainingConfig, options))
            finally:
                file.close()
            found.set_result((options.values, None))
        except RLError as error:
            found.set_result((options.values, error))
        except Exception as error:
            logger.info("A payload is checked once it is here: %s", error)
            found.set_exception(error)
        finally:
            with self._lock:
                self._num_running -= 1


def _meant(name: str, value: Any) -> Any:
    return _UNSET.get(name) if value is None else value
