"""Names of entities, projects and models: their rule, and how error messages quote what a client sent."""

from __future__ import annotations

import re
import reprlib

NAME = re.compile(r"\w[\w.-]{0,127}")
NAME_RULE = "1 to 128 letters, digits, '.', '_' or '-', the first a letter, a digit or '_'"
RESERVED_ENTITIES = ("preview", "files", "fine_tuning")
"""Taken by the API's own paths: /v1/preview/..., /v1/files/..."""

_QUOTES = reprlib.Repr()
_QUOTES.maxstring = 140


def quoted(name: str) -> str:
    """Return a name that a client sent, in quotes, without its middle if it is very long."""
    return _QUOTES.repr(name)
