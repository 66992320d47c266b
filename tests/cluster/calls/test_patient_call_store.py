"""Calls of the store are repeated while it fails, and not when it refuses."""

import pytest

from tandem.cluster.calls.call import CallStore, SaveRefusedError
from tandem.cluster.calls.patient_store import PatientCallStore


class Store(CallStore):
    """Raises these errors one by one, then answers."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def check_save(self, run, call):
        if self.errors:
            raise self.errors.pop(0)
        return 7


def test_a_store_that_fails_is_asked_again():
    assert PatientCallStore(Store(OSError("locked")), 60).check_save(None, None) == 7


def test_a_refusal_is_passed_on_at_once():
    store = Store(SaveRefusedError("taken"), SaveRefusedError("asked again"))
    with pytest.raises(SaveRefusedError, match="taken"):
        PatientCallStore(store, 60).check_save(None, None)
