"""URLs of SQLite databases, whatever characters the path of the file has.

SQLAlchemy's own parser treats escapes in the path of a URL differently from version to version, and `?` always ends it.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

SCHEME = "sqlite:///"


def sqlite_url(path: Path) -> str:
    """Return the URL of the database in a file. Special characters of the path are escaped, like %20."""
    return SCHEME + quote(os.fsencode(path))


def sqlite_path(url: str) -> str | None:
    """Return the path in the URL of an SQLite database, or None for another database. "" means no file."""
    scheme, separator, rest = url.partition("://")
    if scheme.partition("+")[0] != "sqlite":
        return None
    path = rest.partition("?")[0].removeprefix("/") if separator else ""
    return os.fsdecode(unquote_to_bytes(path.encode("utf-8", "surrogateescape")))
