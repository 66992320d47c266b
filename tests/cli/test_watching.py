import threading

import pytest
from waiting import wait_until

from tandem.cli.startup import ServiceLostError
from tandem.cli.watching import MAX_SILENCES, ServiceWatch


class Serve:
    """Returns `answer`, raises it if it is an exception, or blocks until `let_go` is set if it is "never"."""

    def __init__(self):
        self.answer, self.num_asked, self.let_go = True, 0, threading.Event()

    def __call__(self):
        self.num_asked += 1
        if self.answer == "never":
            self.let_go.wait(60)
            return False
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def serve():
    serve = Serve()
    yield serve
    serve.let_go.set()


@pytest.fixture
def check(serve):
    """A function that runs `watch.check` several times. Each time, it waits for the question and any answer."""
    watch = ServiceWatch(serve)

    def check(times):
        for _ in range(times):
            has_no_answer = watch.question.is_open
            num_asked = serve.num_asked + (not has_no_answer)
            watch.check()
            wait_until(lambda expected=num_asked: serve.num_asked == expected)
            wait_until(lambda: serve.answer == "never" or not watch.question.is_open)

    return check


def test_a_service_that_answers_is_left_alone(check):
    check(3 * MAX_SILENCES)


@pytest.mark.parametrize("silence", ["never", False, ConnectionError("no controller")])
def test_lasting_silence_is_the_end(serve, check, silence):
    check(2)
    serve.answer = silence
    check(MAX_SILENCES + 1)  # the first check still sees the previous answer
    with pytest.raises(ServiceLostError, match="45 s"):
        check(1)


def test_silence_that_ends_is_forgotten(serve, check):
    check(1)
    for _ in range(3):
        serve.answer = ConnectionError("the controller is being replaced")
        check(MAX_SILENCES)
        serve.answer = True
        check(1)


def test_a_question_without_answer_is_not_asked_again(serve, check):
    serve.answer = "never"
    check(MAX_SILENCES)
    assert serve.num_asked == 1
