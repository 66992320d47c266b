"""The end of an event loop and of a process that ran user code."""

import asyncio
import subprocess
import sys

import pytest

from tandem.runs import event_loop
from tandem.runs.event_loop import run_with_short_end


def test_it_returns_and_raises_the_outcome_of_the_program():
    async def divide(by):
        await asyncio.sleep(0)
        return 6 / by

    assert run_with_short_end(divide(3)) == 2
    with pytest.raises(ZeroDivisionError):
        run_with_short_end(divide(0))


def test_a_remaining_task_is_cancelled_and_cleans_up():
    cleaned = []

    async def left():
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    async def main():
        task = asyncio.ensure_future(left())
        await asyncio.sleep(0)
        return task

    assert run_with_short_end(main()).cancelled()
    assert cleaned == [True]


def test_a_task_that_swallows_its_cancellation_is_not_waited_for(monkeypatch, capfd):
    monkeypatch.setattr(event_loop, "CANCEL_S", 0.1)

    async def left():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

    async def main():
        task = asyncio.ensure_future(left())
        await asyncio.sleep(0)
        return task

    assert not run_with_short_end(main()).done()
    assert capfd.readouterr().err == ""


def test_a_remaining_generator_is_closed():
    closed = []

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append(True)

    async def main():
        generator = numbers()
        await anext(generator)
        return generator

    generator = run_with_short_end(main())
    assert closed == [True] and generator is not None


def test_a_generator_that_doesnt_close_is_not_waited_for(monkeypatch, capfd):
    monkeypatch.setattr(event_loop, "CANCEL_S", 0.1)

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(3600)

    async def main():
        generator = numbers()
        await anext(generator)
        return generator

    generator = run_with_short_end(main())
    assert generator.ag_frame is not None  # its frame still exists
    assert capfd.readouterr().err == ""


PROGRAM = """
import asyncio, time
from tandem.runs.event_loop import exit_process, run_with_short_end

async def main():
    asyncio.ensure_future(asyncio.to_thread(time.sleep, SECONDS))
    await asyncio.sleep(0)
    print("done")  # into a pipe, so it is buffered

run_with_short_end(main())
exit_process(3)
"""


@pytest.mark.parametrize("seconds", [0, 3600])
def test_a_process_exits_with_its_status_and_output_despite_running_threads(seconds):
    program = [sys.executable, "-c", PROGRAM.replace("SECONDS", str(seconds))]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "done\n", "")
