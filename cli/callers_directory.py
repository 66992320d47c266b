"""The directory where the command was called, in the import path of the command's own process.

An empty entry of PYTHONPATH, as in `PYTHONPATH=$PYTHONPATH:/x`, or "." puts it in front of the standard library, so
that Tandem would import a user's `secrets.py` or `types.py`. It is taken out first thing. `tandem train` puts it back,
last, for the modules of users' environments. This imports nothing that isn't loaded when Python starts.
"""

import os
import sys

_taken_out: list[str] = []


def take_out() -> None:
    """Remove the directory from the import path, unless Tandem itself is imported from there."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed
        return
    entries = os.environ["PYTHONPATH"].split(os.pathsep) if os.environ.get("PYTHONPATH") else []
    is_meant = here in entries or _package_directory() == here
    if is_meant or not any(os.path.normpath(entry) == os.curdir for entry in entries):
        return
    _taken_out[:] = [entry for entry in sys.path if os.path.abspath(entry) == here]
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]


def put_back_last() -> None:
    """Let modules in the directory be imported where no other module has their name."""
    sys.path.extend(entry for entry in _taken_out if entry not in sys.path)
    _taken_out.clear()


def is_the_program() -> bool:
    """Return True if this process is the command `tandem`, and not another program that imports its parts."""
    return os.path.basename(sys.argv[0]) == "tandem"


def _package_directory() -> str:
    """Return the directory from which `tandem` is imported."""
    return os.path.abspath(os.path.join(os.path.dirname(__file__), os.pardir, os.pardir))
