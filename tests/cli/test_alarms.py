"""Alarms that `tandem up` prints while the service runs."""

from waiting import wait_until

from tandem.cli.alarms import Alarms


def test_each_alarm_is_reported_once_and_again_after_it_was_gone():
    answers = iter(
        [
            {"a": None, "b": None},
            {"a": "Bad.", "b": None},
            {"a": "Bad.", "b": "Worse."},
            RuntimeError("the coordinator restarts"),
            {"a": None, "b": "Worse."},
            {"a": "Bad.", "b": "Worse."},
            *[{}] * 10,
        ]
    )

    def ask():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    alarms, found = Alarms(ask), []
    for _ in range(7):
        wait_until(lambda: not alarms.question.is_open)
        found.append(alarms.new())
    assert found == [[], [], ["Bad."], ["Worse."], [], [], ["Bad."]]
