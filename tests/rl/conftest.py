from pathlib import Path

import pytest
from small_models import save_model


@pytest.fixture(scope="session")
def qwen3_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a random Qwen3 of two layers, hidden size 64 and 199 words."""
    return save_model(tmp_path_factory.mktemp("models") / "qwen3")
