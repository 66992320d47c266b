"""Similarities of two texts, each between 0 and 1. Pure functions; N-grams are counted as multisets.

    fuzzy_match   2 L / (|a| + |b|) over characters, L the length of the longest common subsequence: rapidfuzz's `ratio`
    bleu          BLEU-4 of one sentence (Papineni et al. 2002), with exponential smoothing of orders without a match
                  (Chen and Cherry 2014, method 3; the default of sacrebleu)
    gleu          the smaller of precision and recall over all N-grams up to 4 (Wu et al. 2016, section 6)
    rouge_1 .. 5  F1 of N-grams (Lin 2004, section 2)
    rouge_l       F1 of the longest common subsequence of words (Lin 2004, section 3)

Words are runs of letters and digits in lower case for ROUGE; BLEU and GLEU keep the case, and each other character that
isn't white space is a word of its own.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

T = TypeVar("T", bound=Hashable)

MAX_ORDER = 4


def fuzzy_match(text: str, reference: str) -> float:
    """Return the share of characters that both texts have in the same order."""
    total = len(text) + len(reference)
    return 2 * common_subsequence(text, reference) / total if total else 1.0


def bleu(text: str, reference: str) -> float:
    """Return BP * (p_1 p_2 p_3 p_4)^(1/4), with as many orders as the shorter text has words."""
    words, wanted = _tokens(text), _tokens(reference)
    orders = min(MAX_ORDER, len(words), len(wanted))
    if not orders:
        return float(words == wanted)
    log_sum, smoothing = 0.0, 1.0
    for order in range(1, orders + 1):
        matches, num_words, _ = _overlap(words, wanted, order)
        if order == 1 and not matches:
            return 0.0
        if not matches:
            smoothing *= 2
        log_sum += math.log((matches or 1 / smoothing) / num_words)
    brevity = min(0.0, 1 - len(wanted) / len(words))
    return math.exp(log_sum / orders + brevity)


def gleu(text: str, reference: str) -> float:
    """Return min(precision, recall) over the N-grams of orders 1 to 4 together."""
    words, wanted = _tokens(text), _tokens(reference)
    counts = [_overlap(words, wanted, order) for order in range(1, MAX_ORDER + 1)]
    matches, ours, theirs = (sum(column) for column in zip(*counts, strict=True))
    return matches / max(ours, theirs) if max(ours, theirs) else 1.0


def rouge_n(text: str, reference: str, order: int) -> float:
    """Return F1 of the N-grams of this order. Texts too short for any N-gram score 0, unless they are equal."""
    words, wanted = _words(text), _words(reference)
    return _f1(*_overlap(words, wanted, order)) if words != wanted else 1.0


def rouge_l(text: str, reference: str) -> float:
    """Return F1 of the longest common subsequence of words."""
    words, wanted = _words(text), _words(reference)
    return _f1(common_subsequence(words, wanted), len(words), len(wanted)) if words != wanted else 1.0


def _rouge(order: int) -> Callable[[str, str], float]:
    return lambda text, reference: rouge_n(text, reference, order)


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    **{f"rouge_{order}": _rouge(order) for order in range(1, 6)},
    "rouge_l": rouge_l,
}
"""The similarity of a text to a reference, by the name of the metric."""


def common_subsequence(first: Sequence[T], second: Sequence[T]) -> int:
    """Return the length of the longest common subsequence.

    The bit-parallel algorithm of Hyyrö (2004), "Bit-parallel LCS-length computation revisited": one integer holds a row
    of the table, so that a text of 10,000 characters takes milliseconds.
    """
    places: dict[T, int] = {}
    for index, element in enumerate(first):
        places[element] = places.get(element, 0) | 1 << index
    mask = (1 << len(first)) - 1
    row = mask
    for element in second:
        matches = row & places.get(element, 0)
        row = ((row + matches) | (row - matches)) & mask
    return len(first) - row.bit_count()


def _overlap(words: Sequence[str], wanted: Sequence[str], order: int) -> tuple[int, int, int]:
    """Return the numbers of common N-grams, of those of `words`, and of those of `wanted`."""
    ours, theirs = _ngrams(words, order), _ngrams(wanted, order)
    return (ours & theirs).total(), ours.total(), theirs.total()


def _ngrams(words: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _f1(matches: int, num_ours: int, num_theirs: int) -> float:
    return 2 * matches / (num_ours + num_theirs) if num_ours + num_theirs else 0.0


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text)
