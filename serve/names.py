"""Names of entities, projects, models and datasets: their rules, and how error messages quote what a client sent."""

from __future__ import annotations

import re
import reprlib

NAME = re.compile(r"\w[\w.-]{0,127}")
NAME_RULE = "1 to 128 letters, digits, '.', '_' or '-', the first a letter, a digit or '_'"
RESERVED_ENTITIES = ("preview", "files", "fine_tuning")
"""Taken by the API's own paths: /v1/preview/..., /v1/files/..."""

DATASET_SCHEME = "tandem-dataset:///"
"""Of the address of a dataset, before its digest."""

_QUOTES = reprlib.Repr()
_QUOTES.maxstring = 140


def quoted(name: str) -> str:
    """Return a name that a client sent, in quotes, without its middle if it is very long."""
    return _QUOTES.repr(name)
