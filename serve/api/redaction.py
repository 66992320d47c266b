"""Removes API keys from logs and responses."""

from __future__ import annotations

import re

_KEY = re.compile(r"tdm_[A-Za-z0-9_-]{16,}")


def without_keys(text: str) -> str:
    """Return the text without API keys, which a client may have sent in the wrong place of a request."""
    return _KEY.sub("tdm_...", text)
