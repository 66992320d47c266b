"""The names of policy versions in vLLM."""

from __future__ import annotations

_PREFIX = "policy-"


def adapter_name(digest: str) -> str:
    """Return the name of a policy version in the engine, and the `model` of its responses.

    A name always means the same weights, because vLLM's prefix cache uses it as a key.
    """
    return f"{_PREFIX}{digest}"


def adapter_digest(name: str) -> str:
    """Return the digest in the engine's name of a policy version."""
    return name.removeprefix(_PREFIX)
