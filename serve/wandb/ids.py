"""Ids of the objects in the W&B API: base64, as its clients expect, of a kind and of what identifies the object."""

from __future__ import annotations

import base64
import binascii
from typing import Literal

Kind = Literal["Artifact", "Checkpoint", "Manifest", "File", "Collection", "Alias", "Entity", "Project", "Run"]


def make_id(kind: Kind, *parts: str | int) -> str:
    """Return the id of the object of this kind that the parts identify."""
    return base64.b64encode(":".join((kind, *map(str, parts))).encode()).decode()


def read_id(id: str) -> tuple[str, list[str]]:
    """Return the kind and the parts of an id; ("", []) if it is none."""
    try:
        kind, *parts = base64.b64decode(id, validate=True).decode().split(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return "", []
    return kind, parts
