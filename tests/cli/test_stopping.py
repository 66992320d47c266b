"""SIGINT and SIGTERM, sent to a separate process."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, time
from tandem.cli.stopping import StopSignals

stop = StopSignals()
stop.listen()
print("ready", flush=True)
stop.wait()
print("ending", stop.signal.name, flush=True)
try:
    stop.check()
except KeyboardInterrupt:
    pass
try:
    print("given up", flush=True)
    while True:  # one long sleep would go on after a signal that comes just before it
        time.sleep(0.1)
except KeyboardInterrupt:
    print("at once", flush=True)
sys.stdin.readline()
print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_the_second_insists_the_rest_are_ignored(first, second):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        said = iter(process.stdout.readline, "")
        assert next(said) == "ready\n"
        process.send_signal(first)
        assert next(said) == f"ending {first.name}\n"
        assert next(said) == "given up\n"
        process.send_signal(second)
        assert next(said) == "at once\n"
        process.send_signal(first)
        process.send_signal(second)
        process.stdin.write("\n")
        process.stdin.flush()
        assert next(said) == "cleaned up\n"
        assert process.wait(300) == 0
