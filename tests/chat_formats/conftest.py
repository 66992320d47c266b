"""The engine's renderer for the families' templates. Loads vLLM, but starts no engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import EngineRenderer, save_small_tokenizer


@pytest.fixture(scope="package")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a small tokenizer with the control tokens of all families."""
    directory = tmp_path_factory.mktemp("small")
    save_small_tokenizer(directory)
    return directory


@pytest.fixture(scope="package")
def engine(small: Path) -> EngineRenderer:
    pytest.importorskip("vllm")
    return EngineRenderer(small)
