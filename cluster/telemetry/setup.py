"""Sets up the log of a process, and its traces if they are on."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem.cluster.config.observability import LoggingConfig, TracingConfig
from tandem.cluster.telemetry.formats import FORMATS
from tandem.cluster.telemetry.tracing import start_tracing

if TYPE_CHECKING:
    from tandem.cluster.config import TandemConfig

# Libraries whose lines below warnings say nothing that an operator needs.
QUIET = ("alembic", "httpx", "httpcore", "asyncio", "filelock", "urllib3")
VLLM_CONFIG = "VLLM_LOGGING_CONFIG_PATH"


class _Handler(logging.StreamHandler[Any]):
    """Writes to the stderr that the process has when it writes, which Ray Serve and tests replace."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: Any) -> None:
        pass


@dataclass(frozen=True)
class Telemetry:
    """What each process needs to know in order to log and trace. It travels to actors as an argument."""

    log: LoggingConfig
    tracing: TracingConfig | None = None

    @classmethod
    def of(cls, config: TandemConfig) -> Telemetry:
        return cls(config.logging, config.tracing)

    def set_up(self, process: str, **about: str | int) -> None:
        """Write this process's log to stderr in the configured form, and start its traces. Repeats are harmless.

        `process` is its part, like "api"; `about` are more facts for its lines, like the rank of a learner.
        """
        facts = {"process": process, **about}
        self._set_up_log(logging.getLogger(), facts)
        self._adopt_rays_lines(facts)
        start_tracing(self.tracing, facts)

    def _set_up_log(self, root: logging.Logger, facts: dict[str, str | int]) -> None:
        for handler in list(root.handlers):
            if isinstance(handler, _Handler):
                root.removeHandler(handler)
        handler = _Handler()
        handler.setFormatter(FORMATS[self.log.format](**facts))
        root.addHandler(handler)
        level = self.log.level.upper()
        root.setLevel("INFO" if level == "DEBUG" else level)
        logging.getLogger("tandem").setLevel(level)
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)

    def _adopt_rays_lines(self, facts: dict[str, str | int]) -> None:
        """Give the lines of Ray and Ray Serve the same form; in text they keep their own, which people know."""
        if self.log.format != "json":
            return
        for handler in _stream_handlers("ray", "ray.serve"):
            handler.setFormatter(FORMATS["json"](**facts))

    def set_up_vllm(self, process: str, **about: str | int) -> None:
        """Have vLLM, here and in the processes that it starts, log in JSON. Call it before vLLM is imported.

        In text, vLLM's lines keep their own form, with the ids of requests that vLLM itself writes.
        """
        if self.log.format != "json" or VLLM_CONFIG in os.environ:
            return
        level = self.log.level.upper()
        form = {"()": "tandem.cluster.telemetry.formats.JsonFormat", "process": process, **about}
        settings = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"tandem": form},
            "handlers": {
                "vllm": {"class": "logging.StreamHandler", "formatter": "tandem", "stream": "ext://sys.stdout"}
            },
            "loggers": {"vllm": {"handlers": ["vllm"], "level": level, "propagate": False}},
        }
        descriptor, path = tempfile.mkstemp(prefix="tandem-vllm-logging-", suffix=".json")
        with open(descriptor, "w") as file:
            json.dump(settings, file)
        os.environ[VLLM_CONFIG] = str(Path(path))


def _stream_handlers(*names: str) -> Iterator[logging.Handler]:
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if type(handler).__name__ == "StreamHandler" or type(handler).__name__ == "PlainRayHandler":
                yield handler
