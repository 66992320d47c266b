import pytest

from tandem.serve.modelarts.store.store import ModelArtsStore


@pytest.fixture
def modelarts(store):
    """The store of this API, in the database of `store`."""
    return ModelArtsStore(store.database)
