"""Texts of tokens are vLLM's, decoded once each."""

from paths import DATA
from transformers import AutoTokenizer

from tandem.cluster.engine.vllm_changes.token_texts import TokenTexts


def test_texts_are_those_of_the_tokenizer_and_decoded_once():
    asked = []

    def decode(tokenizer, token_ids):
        asked.append(list(token_ids))
        return [tokenizer.decode([token]) for token in token_ids]

    first, second = (AutoTokenizer.from_pretrained(DATA / "tokenizer") for _ in range(2))
    texts, ids = TokenTexts(decode), [300, 5, 301, 424]
    assert texts(first, ids) == decode(first, ids)
    asked.clear()
    assert texts(first, [424, 300, 424]) == [first.decode([token]) for token in (424, 300, 424)]
    assert asked == []
    assert texts(first, [5, 6]) == [first.decode([5]), first.decode([6])] and asked == [[6]]
    assert texts(second, [5]) == [second.decode([5])] and asked == [[6], [5]]  # another tokenizer has other texts
    assert texts(first, []) == []
