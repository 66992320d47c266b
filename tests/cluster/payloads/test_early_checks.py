"""Payloads that are checked while they arrive."""

import json
import threading
import time

import pytest
import zstandard

from tandem.cluster.payloads import early_checks
from tandem.cluster.payloads.early_checks import EarlyChecks
from tandem.cluster.payloads.reading import PayloadError
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import TrajectoryError

PLAIN, SCALED = TrainingConfig(), TrainingConfig(scale_rewards=False)
GROUP = {"trajectories": [{"messages_and_choices": [{"role": "user", "content": "x" * 1000}], "reward": 0.5}]}


def compressed(*groups):
    """The body with some groups, in two parts."""
    body = json.dumps({"model_id": "m", "trajectory_groups": [*groups]}).encode()
    content = zstandard.ZstdCompressor(1).compress(body)
    return content[: len(content) // 2], content[len(content) // 2 :]


class Checked:
    """A check that reads one option, and says when it has seen the first group."""

    def __init__(self, error=None):
        self.error, self.rewards, self.has_begun = error, [], threading.Event()

    def __call__(self, groups, config):
        assert config.scale_rewards is None and not config.kl_penalty_coef
        self.has_begun.set()
        self.rewards = [group.trajectories[0].reward for group in groups]
        if self.error:
            raise self.error


@pytest.fixture
def body(tmp_path):
    first, rest = compressed(GROUP, GROUP)
    path = tmp_path / "body.json.zst"
    path.write_bytes(first)
    return path, rest


def begun(path, check):
    early = EarlyChecks()
    early.begin(path, check, "e/p/m")
    assert check.has_begun.wait(10)
    return early


def append(path, rest):
    with open(path, "ab") as file:
        file.write(rest)


def test_a_check_that_began_with_the_first_bytes_ends_with_the_last(body):
    path, rest = body
    check = Checked()
    early = begun(path, check)
    assert check.rewards == []
    append(path, rest)
    # The check doesn't read the first of these options, and the other two have their defaults.
    assert early.is_good(path, TrainingConfig(learning_rate=0.5, scale_rewards=True, kl_penalty_coef=0.0))
    assert check.rewards == [0.5, 0.5]
    assert not early.is_good(path, PLAIN)  # a result is that of one request


def test_another_value_of_an_option_that_was_read_needs_another_check(body):
    path, rest = body
    early = begun(path, Checked(TrajectoryError(0, 0, 0, None, "isn't exact")))
    append(path, rest)
    assert not early.is_good(path, SCALED)


def test_what_was_found_is_raised(body):
    path, rest = body
    early = begun(path, Checked(TrajectoryError(0, 0, 0, None, "isn't exact")))
    append(path, rest)
    with pytest.raises(TrajectoryError):
        early.is_good(path, PLAIN)


def test_invalid_groups_are_named_as_in_a_check_of_the_whole(tmp_path):
    path = tmp_path / "body"
    path.write_bytes(b"".join(compressed(GROUP, {"trajectories": 5})))
    early = begun(path, Checked())
    with pytest.raises(PayloadError) as raised:
        early.is_good(path, PLAIN)
    assert raised.value.faults[0]["loc"][:3] == ("trajectory_groups", 1, "trajectories")


@pytest.mark.parametrize("is_removed", [True, False], ids=["removed", "slow"])
def test_a_body_that_does_not_arrive_is_left_to_a_later_check(body, is_removed, monkeypatch):
    monkeypatch.setattr(early_checks, "PATIENCE_S", 60.0 if is_removed else 0.05)
    path, _ = body
    early = begun(path, Checked())
    if is_removed:
        path.unlink()
    assert not early.is_good(path, PLAIN)


def test_a_body_that_is_cut_off_is_left_to_a_later_check(tmp_path, monkeypatch):
    monkeypatch.setattr(early_checks, "PATIENCE_S", 0.2)
    path = tmp_path / "body"
    path.write_bytes(zstandard.ZstdCompressor(1).compress(b'{"trajectory_groups": [{'))
    assert not begun(path, Checked()).is_good(path, PLAIN)


def test_more_bodies_than_allowed_are_left_to_a_later_check(tmp_path, body, monkeypatch):
    monkeypatch.setattr(early_checks, "MAX_AT_ONCE", 1)
    path, rest = body
    early, other = begun(path, Checked()), tmp_path / "other"
    other.write_bytes(b"".join(compressed(GROUP)))
    early.begin(other, Checked(), "e/p/m")
    assert not early.is_good(other, PLAIN)
    append(path, rest)
    assert early.is_good(path, PLAIN)
    deadline = time.monotonic() + 10
    while early._num_running and time.monotonic() < deadline:
        time.sleep(0.001)
    early.begin(other, Checked(), "e/p/m")
    assert early.is_good(other, PLAIN)


def test_results_that_nobody_asks_for_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(early_checks, "MAX_KEPT", 1)
    early, check = EarlyChecks(), Checked()
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"".join(compressed(GROUP)))
        early.begin(path, check, "e/p/m")
    assert [early.is_good(path, PLAIN) for path in paths] == [False, True]
