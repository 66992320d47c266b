"""Similarities of texts against numbers worked out by hand."""

import random
from math import exp, log

import pytest

from tandem.rl.graders.string_check import string_check
from tandem.rl.graders.text_similarity import METRICS, bleu, common_subsequence, fuzzy_match, gleu, rouge_l, rouge_n


def test_each_metric_is_one_for_equal_texts_and_zero_for_disjoint_ones():
    for name, similarity in METRICS.items():
        assert similarity("the cat sat on the mat", "the cat sat on the mat") == pytest.approx(1), name
        assert similarity("xyz", "uvw") == 0, name


def test_the_empty_text_is_like_itself_alone():
    for name, similarity in METRICS.items():
        assert similarity("", "") == 1, name
        assert similarity("", "word") == similarity("word", "") == 0, name


def test_fuzzy_match():
    # kitten and sitting share "ittn": 2 * 4 / (6 + 7)
    assert fuzzy_match("kitten", "sitting") == pytest.approx(8 / 13)


def slow_lcs(first, second):
    row = [0] * (len(second) + 1)
    for a in first:
        row, above = [0], row
        for j, b in enumerate(second):
            row.append(above[j] + 1 if a == b else max(row[j], above[j + 1]))
    return row[-1]


def test_the_bit_parallel_subsequence_is_that_of_the_table():
    rng = random.Random(0)
    for _ in range(50):
        first, second = ("".join(rng.choices("abcd", k=rng.randrange(90))) for _ in range(2))
        assert common_subsequence(first, second) == slow_lcs(first, second)


def test_rouge():
    text, reference = "the cat was found", "The cat was under the bed!"
    # 1-grams: the, cat, was in common; 4 and 6 words
    assert rouge_n(text, reference, 1) == pytest.approx(2 * 3 / 10)
    # 2-grams: "the cat", "cat was"; 3 and 5
    assert rouge_n(text, reference, 2) == pytest.approx(2 * 2 / 8)
    assert rouge_n(text, reference, 3) == pytest.approx(2 * 1 / 6)
    assert rouge_n(text, reference, 4) == rouge_n(text, reference, 5) == 0
    # the longest common subsequence of "b a c" and "a b c d" is "a c" or "b c"
    assert rouge_l("b a c", "a b c d") == pytest.approx(2 * 2 / 7)
    assert rouge_n("naïve Größe", "größe NAÏVE", 1) == 1, "letters of any language are words"


def test_bleu():
    text, reference = "a b c d e", "a b c x e f"
    # Precisions: 4/5, 2/4, 1/3, and of the 4-grams none: smoothed to (1/2) / 2. Brevity exp(1 - 6/5).
    expected = exp((log(4 / 5) + log(2 / 4) + log(1 / 3) + log(1 / 4)) / 4 + 1 - 6 / 5)
    assert bleu(text, reference) == pytest.approx(expected)
    assert bleu("no", "no way") == pytest.approx(exp(1 - 2)), "one word has 1-grams only"
    assert bleu("the the the the", "the cat") < 0.5, "a word counts as often as the reference has it"


def test_gleu():
    # 1-grams 2 of 3 and 4, 2-grams 1 of 2 and 3, 3-grams 0 of 1 and 2, 4-grams 0 of 0 and 1: 3 of max(6, 10)
    assert gleu("a b z", "a b c d") == pytest.approx(3 / 10)


@pytest.mark.parametrize(
    ("operation", "text", "reference", "expected"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "Paris", "paris", 0),
        ("ne", "Paris", "paris", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("ilike", "It is PARIS.", "paris", 1),
        ("ilike", "Paris", "It is Paris.", 0),
    ],
)
def test_string_checks(operation, text, reference, expected):
    assert string_check(operation, text, reference) == expected
