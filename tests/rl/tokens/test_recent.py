import pytest

from tandem.rl.tokens.recent import Recent


def test_the_least_recently_used_result_is_dropped_first():
    made, recent = [], Recent(2)

    def get(text):
        return recent.get(text, lambda: made.append(text) or text.upper())

    assert [get(text) for text in ("a", "b", "a", "c", "a", "b")] == ["A", "B", "A", "C", "A", "B"]
    assert made == ["a", "b", "c", "b"]


def test_an_error_is_not_kept():
    recent = Recent(2)
    with pytest.raises(ZeroDivisionError):
        recent.get("a", lambda: 1 // 0)
    assert recent.get("a", lambda: 7) == 7
