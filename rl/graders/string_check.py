"""String checks: 1 if a text passes, else 0."""

from __future__ import annotations

from collections.abc import Callable

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}
"""eq: equal; ne: different; like: the text contains the reference; ilike: it does without regard to case."""


def string_check(operation: str, text: str, reference: str) -> float:
    """Return 1.0 or 0.0."""
    return float(OPERATIONS[operation](text, reference))
