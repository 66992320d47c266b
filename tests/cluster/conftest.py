import pytest
from coordinator_fakes import TOKENIZER, Base
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts


@pytest.fixture(scope="module")
def base():
    return Base(AutoTokenizer.from_pretrained(TOKENIZER))


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path))
