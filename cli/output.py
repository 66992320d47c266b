"""Output of the commands: text that a terminal, a pipe or a closed stream can't take never ends a command."""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import IO, Any

import typer

ENCODING_ERRORS = "tandem.plain"
"""The error handler of the standard streams, for characters that their encoding doesn't have."""
_PLAIN = {"·": "-", "±": "+/-", "×": "x", "→": "->", "…": ".", "█": "#", "’": "'", "“": '"', "”": '"'}
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
"""Nobody reads any more: `tandem jobs | head`, or a terminal that was closed."""


class TolerantApp(typer.Typer):
    """A command line with output that never ends it. If the disk took only a part of it, the status isn't 0."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        tolerate_any_output()
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as ended:
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            if not ended.code and (reason := lost_output()):
                print(f"Not all output could be written: {reason}.", file=sys.stderr)
                raise SystemExit(1) from None
            raise


def tolerate_any_output() -> None:
    """Let the process write any text to its standard streams, whatever their encoding, even if nobody reads them.

    Unknown characters are written in ASCII. Output that can't be written is dropped.
    """
    codecs.register_error(ENCODING_ERRORS, _plain)
    _open_missing_descriptors()
    sys.stdout = _tolerant(sys.stdout, 1)
    sys.stderr = _tolerant(sys.stderr, 2)


def lost_output() -> str | None:
    """Return the reason for which output was lost, unless its reader simply ended; None if nothing was lost."""
    raws = (getattr(getattr(stream, "buffer", None), "raw", None) for stream in (sys.stdout, sys.stderr))
    failed = [raw.error for raw in raws if isinstance(raw, _TolerantFile) and raw.error is not None]
    return next((os.strerror(number) for number in failed if number not in _GONE), None)


class _TolerantFile(io.FileIO):
    """A file whose writes succeed. After one that fails, what is written is dropped."""

    error: int | None = None
    """The number of the first error."""

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                written: int | None = super().write(data)
                while written is None:  # a pipe that doesn't block and is full
                    select.select([], [self.fileno()], [])
                    written = super().write(data)
                return written
            except OSError as error:
                self.error = error.errno or errno.EIO
        return memoryview(data).nbytes


def _tolerant(stream: IO[str] | None, descriptor: int) -> io.TextIOWrapper | Any:
    """Return a stream on the same descriptor. Leave one that isn't a process's own, as in tests, as it is."""
    if stream is not None and not (isinstance(stream, io.TextIOWrapper) and _descriptor(stream) == descriptor):
        return stream
    if stream is not None:
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_TolerantFile(descriptor, "w", closefd=False)),
        encoding=stream.encoding if stream is not None else "utf-8",
        errors=ENCODING_ERRORS,
        line_buffering=stream.line_buffering if stream is not None else descriptor == 2,
        write_through=stream.write_through if stream is not None else False,
    )


def _descriptor(stream: io.TextIOWrapper) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def _open_missing_descriptors() -> None:
    """Open standard descriptors that the caller closed (`>&-`): the next file would get their number and our output."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
            assert opened == number
            os.set_inheritable(number, True)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Write a character that the encoding doesn't have in ASCII: `->` for an arrow, else as `\\u20ac`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_ascii, error.object[error.start : error.end])), error.end


def _ascii(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    code = ord(character)
    if 0x2500 <= code < 0x2580:  # the lines of tables
        return "-" if code in (0x2500, 0x2501, 0x2550) else "|" if code in (0x2502, 0x2503, 0x2551) else "+"
    if 0x2800 <= code < 0x2900:  # the dots of a spinner
        return "."
    return character.encode("ascii", "backslashreplace").decode()
