"""Waiting for what other threads and processes do."""

import time


def wait_until(holds, deadline_s=60):
    """The deadline is for what never comes; on a busy machine, anything may take seconds."""
    deadline = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
