"""What a line says, in both forms, and that nothing in it can pass for another line."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from tandem.cluster.config import LoggingConfig
from tandem.cluster.processes.deadlines import within
from tandem.cluster.telemetry.context import current_ids, in_this_context, logged_with
from tandem.cluster.telemetry.setup import Telemetry

KEY = "tdm_" + "a" * 43
HOSTILE = [
    "x\n2026-11-30 19:00:00,000 ERROR api tandem: forged",
    "x\r\n{}",
    "\x1b[31mred\x1b[0m",
    "\u202etxt.exe",
    "\u2028next",
    "\x85next",
    "\x00",
]


@pytest.fixture
def written(capsys):
    """Set up the log of this process, and return what is written; the settings from before come back."""
    root, own = logging.getLogger(), logging.getLogger("tandem")
    before = root.handlers[:], root.level, own.level
    parts = []

    def set_up(form, level="info", **about):
        Telemetry(LoggingConfig(format=form, level=level)).set_up("learner", **about)
        return text

    def text():
        parts.append(capsys.readouterr().err)
        return "".join(parts)

    yield set_up
    root.handlers[:], (root.level, own.level) = before[0], before[1:]


log = logging.getLogger("tandem.tests")


def test_a_json_line_has_the_facts_of_the_process_and_the_ids(written):
    text = written("json", rank=1)
    with logged_with(request_id="req_1", job_id="job"), logged_with(attempt=2, version=None):
        log.warning("took %.1f s", 1.5)
    line = json.loads(text())
    assert line.pop("time").endswith("+00:00") and isinstance(line.pop("pid"), int)
    assert line == {
        "level": "warning",
        "logger": "tandem.tests",
        "message": "took 1.5 s",
        "process": "learner",
        "rank": 1,
        "request_id": "req_1",
        "job_id": "job",
        "attempt": 2,
    }
    assert current_ids() == {}


def test_the_trace_is_that_of_the_span(written):
    text = written("json")
    with logged_with(traceparent=f"00-{'a' * 32}-{'b' * 16}-01"):
        log.info("x")
    assert json.loads(text())["trace_id"] == "a" * 32


def test_an_exception_is_in_the_line(written):
    text = written("json")
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("failed")
    [line] = text().splitlines()
    assert json.loads(line)["exception_type"] == "ValueError"
    assert json.loads(line)["exception"].endswith("ValueError: a\nb")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_value_makes_a_line_or_a_control_character(written, form, hostile):
    text = written(form)
    with logged_with(request_id=hostile, model_id=hostile):
        log.info("model %s", hostile)
    log.info("second")
    lines = text().splitlines()
    assert len(lines) == 2 and "second" in lines[1]
    assert lines[0].isascii() and lines[0].isprintable()


def test_lines_of_a_traceback_cannot_pass_for_others(written):
    text = written("text")
    try:
        raise ValueError("a\n2026-11-30 19:00:00,000 ERROR api tandem: forged\r\u202e")
    except ValueError:
        log.exception("failed")
    first, *others = text().splitlines()
    assert "failed" in first and len(others) > 2
    assert all(line.startswith("    | ") and line.isprintable() for line in others)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(
    ("secret", "said"),
    [
        (KEY, f"key {KEY}"),
        ("hunter2hunter2", "postgresql://user:hunter2hunter2@host/db"),
        ("eyJhbGciOiJ", "Authorization: Bearer eyJhbGciOiJ"),
    ],
)
def test_secrets_are_left_out_of_messages_ids_and_tracebacks(written, form, secret, said):
    text = written(form)
    with logged_with(request_id=said):
        try:
            raise ValueError(said)
        except ValueError:
            log.exception("%s", said)
    assert "ValueError" in text() and secret not in text()


def test_the_level_is_that_of_the_configuration(written):
    text = written("text", level="warning")
    log.info("quiet")
    log.warning("loud")
    assert "loud" in text() and "quiet" not in text()


def test_a_second_set_up_replaces_the_first(written):
    written("text")
    text = written("json")
    log.info("once")
    assert [json.loads(line)["message"] for line in text().splitlines()] == ["once"]


def test_threads_have_the_ids_that_are_handed_to_them():
    with logged_with(job_id="job"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_this_context(current_ids)).result() == {"job_id": "job"}
        assert within(60, current_ids, "thread") == {"job_id": "job"}
        assert pool.submit(current_ids).result() == {}
