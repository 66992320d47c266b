import threading

import pytest

from tandem.cluster.processes.deadlines import in_thread, within


def fail():
    raise KeyError("place")


def test_results_and_errors_are_those_of_the_call():
    assert within(60, lambda: 7, "adding") == 7
    with pytest.raises(KeyError, match="place"):
        within(60, fail, "failing")


def test_a_call_without_an_answer_is_abandoned_and_named():
    released = threading.Event()
    with pytest.raises(TimeoutError, match="asking"):
        within(0.05, released.wait, "asking")
    released.set()


def test_a_timeout_of_the_call_itself_keeps_its_message():
    def fail():
        raise TimeoutError("the disk")

    with pytest.raises(TimeoutError, match="the disk"):
        within(60, fail, "writing")


def test_a_call_in_the_background_is_waited_for_when_its_result_is_wanted():
    released = threading.Event()
    outcome = in_thread(released.wait, "waiting")
    assert not outcome.done()
    released.set()
    assert outcome.result(60)
