"""Every test runs in one lane of `make test`, and the unit lane stays free of Ray."""

import re
from pathlib import Path

import pytest
from lanes import LANES, RAY_FIXTURE, SHARED_FOLDERS, check_lane, group_of, is_left_out, lane_of
from paths import ROOT

FILES = sorted((ROOT / "tests").rglob("test_*.py"))
MAKEFILE = (ROOT / "Makefile").read_text()


def test_each_file_runs_in_one_lane() -> None:
    for file in FILES:
        assert [lane for lane in LANES if not is_left_out(file, lane)] == [lane_of(file)]
        assert not is_left_out(file, None)
    assert {lane_of(file) for file in FILES} == set(LANES)


def test_make_test_runs_each_lane_once() -> None:
    [dependencies] = re.findall(r"^test: ([a-z0-9 -]+)", MAKEFILE, re.MULTILINE)
    assert dependencies.split() == [f"test-{lane}" for lane in LANES]
    for lane in LANES:
        [command] = re.findall(rf"^test-{lane}: .*\n\t(.*)", MAKEFILE, re.MULTILINE)
        assert re.findall(r"--lane (\w+)", command) == [lane]


def test_a_unit_test_that_starts_ray_is_rejected() -> None:
    check_lane("it", Path(__file__), ["tmp_path"])
    with pytest.raises(pytest.UsageError, match="it starts Ray"):
        check_lane("it", Path(__file__), ["tmp_path", RAY_FIXTURE])


def test_one_process_runs_all_tests_of_the_service_and_of_an_engine_and_each_other_file() -> None:
    assert group_of("tests/e2e/test_cli.py::test_a") == group_of("tests/e2e/test_versions.py::test_b[1]")
    for folder in SHARED_FOLDERS:
        files = [str(file.relative_to(ROOT)) for file in FILES if file.is_relative_to(ROOT / folder)]
        assert len(files) > 1
        assert {group_of(f"{file}::test_a") for file in files} == {folder}
    assert group_of("tests/rl/test_batch.py::test_a") == group_of("tests/rl/test_batch.py::test_b[x::y]")
    assert group_of("tests/rl/test_batch.py::test_a") != group_of("tests/rl/test_config.py::test_a")
