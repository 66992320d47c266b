import openai
import pytest
from fine_tuning_data import CHAT, json_lines

from tandem.serve.finetuning.store.store import FineTuningStore


@pytest.fixture
def finetuning(store):
    """The store of this API, in the database of `store`."""
    return FineTuningStore(store.database)


@pytest.fixture
def client(base_url, key):
    """The unmodified SDK of OpenAI."""
    with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0) as client:
        yield client


@pytest.fixture
def upload(client):
    def upload(rows=(CHAT,), name="train.jsonl"):
        content = rows if isinstance(rows, bytes) else json_lines(rows)
        return client.files.create(file=(name, content), purpose="fine-tune")

    return upload
