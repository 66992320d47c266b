"""Removes secrets from texts that are logged or sent: API keys, bearer tokens, passwords in URLs."""

from __future__ import annotations

import re

_KEY = re.compile(r"tdm_[A-Za-z0-9_-]{16,}")
_OTHERS = re.compile(r"(?i)(?P<bearer>\bBearer\s+)[A-Za-z0-9._~+/=-]{8,}|(?P<scheme>\w://[^\s:/@]*:)[^\s/@]+(?=@)")


def without_keys(text: str) -> str:
    """Return the text without API keys, which a client may have sent in the wrong place of a request."""
    return _KEY.sub("tdm_...", text) if "tdm_" in text else text


def without_secrets(text: str) -> str:
    """Return the text without API keys, bearer tokens and passwords of URLs."""
    text = without_keys(text)
    if "://" in text or "earer" in text or "EARER" in text:
        text = _OTHERS.sub(lambda found: (found["bearer"] or found["scheme"]) + "...", text)
    return text
