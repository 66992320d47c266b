"""The texts of single tokens in logprobs, decoded once each: a fifth of vLLM's work on a completion with logprobs.

Importing this module imports no vLLM.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

Decode = Callable[[Any, list[int]], list[str]]


class TokenTexts:
    """vLLM's `convert_ids_list_to_tokens`, which decodes each id by itself, with a memory of a tokenizer's texts.

    TokenTexts.install()
    """

    def __init__(self, decode: Decode):
        self._decode = decode
        self._tokenizer: Any = None
        self._texts: dict[int, str] = {}

    @classmethod
    def install(cls) -> None:
        """Make vLLM's logprobs in this process use one. Repeated calls have no effect."""
        logprobs: Any = importlib.import_module("vllm.v1.engine.logprobs")
        if not isinstance(logprobs.convert_ids_list_to_tokens, cls):
            logprobs.convert_ids_list_to_tokens = cls(logprobs.convert_ids_list_to_tokens)

    def __call__(self, tokenizer: Any, token_ids: list[int]) -> list[str]:
        if self._tokenizer is None:
            self._tokenizer = tokenizer
        if tokenizer is not self._tokenizer:  # an engine has one
            return self._decode(tokenizer, token_ids)
        if missing := [token for token in token_ids if token not in self._texts]:
            self._texts.update(zip(missing, self._decode(tokenizer, missing), strict=True))
        return [self._texts[token] for token in token_ids]
