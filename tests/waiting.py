"""Waiting for other threads and processes."""

import time


def wait_until(holds, deadline_s=300):
    """Poll until `holds` returns true. Fail at the deadline, which is generous because machines may be busy."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
