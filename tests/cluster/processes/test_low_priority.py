import os
import threading

import pytest

from tandem.cluster.processes.low_priority import NICE, at_low_priority


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_only_the_work_has_a_low_priority():
    own = niceness()
    assert at_low_priority(niceness, "work") == max(own, NICE)
    assert niceness() == own


def test_an_error_of_the_work_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        at_low_priority(lambda: 1 // 0, "work")
