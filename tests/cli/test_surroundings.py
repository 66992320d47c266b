"""Directories, space and names that a service can't use: one sentence before anything is started."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.cli import launch, main, surroundings
from tandem.cli.startup import StartError
from tandem.cli.surroundings import UnusableError, check_surroundings
from tandem.cluster.config import TINY, TandemConfig

VARIABLES = (
    *("TMPDIR", "RAY_TMPDIR", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "VLLM_CACHE_ROOT"),
    *("TORCHINDUCTOR_CACHE_DIR", *surroundings.OFFLINE),
)
DOWNLOADED = TINY.model_copy(update={"path": "organization/model"})


@pytest.fixture
def config(tmp_path, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    return TandemConfig.load()


@pytest.fixture
def unusable(tmp_path):
    """A path below a file, where root can't make a directory either."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "directory"


def test_usual_surroundings_pass_and_the_home_is_private(config):
    check_surroundings(config)
    assert config.home.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("variable", [name for name in VARIABLES if name not in surroundings.OFFLINE])
def test_a_directory_that_cannot_be_used_is_named_with_its_variable(config, unusable, monkeypatch, variable):
    monkeypatch.setenv(variable, str(unusable))
    if "RAY" in variable:
        monkeypatch.setenv("TMPDIR", "/tmp")
    with pytest.raises(UnusableError) as caught:
        check_surroundings(config.model_copy(update={"base_models": (DOWNLOADED,)}))
    assert variable in str(caught.value) and str(unusable) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("home", ["/proc", "/dev/null", "/sys/kernel"])
def test_a_home_that_cannot_be_written_is_named(config, monkeypatch, home):
    monkeypatch.setenv("HOME", home)
    with pytest.raises(UnusableError, match=rf"{home}/\.cache.*HOME"):
        check_surroundings(config)


@pytest.mark.parametrize("home", ["/dev/null/x", "/proc/x", "file"])
def test_a_service_home_that_cannot_be_made_ends_every_command_that_needs_it(tmp_path, monkeypatch, home):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", home)
    for arguments in (["keys", "list"], ["keys", "create", "--name", "a"], ["up"], ["demo"]):
        result = CliRunner().invoke(main.app, arguments)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
        assert "TANDEM_HOME" in result.output and home in result.output


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_named(config, tmp_path, monkeypatch, variable):
    long = tmp_path / ("x" * (106 - len(str(tmp_path)) - 1))
    long.mkdir()
    monkeypatch.setenv(variable, str(long))
    with pytest.raises(UnusableError, match=variable) as caught:
        check_surroundings(config)
    assert str(long) in str(caught.value) and "106 bytes" in str(caught.value)


def test_rays_sockets_just_fit_where_it_is_accepted(config, monkeypatch):
    """Ray's own check of the path that it will use."""
    from ray._private.utils import validate_socket_filepath

    room = surroundings.SOCKET_BYTES - len(surroundings.RAYS_SOCKETS)
    validate_socket_filepath("/" + "x" * (room - 1) + surroundings.RAYS_SOCKETS)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("/" + "x" * room + surroundings.RAYS_SOCKETS)
    assert room >= 35


@pytest.mark.parametrize(("directory", "word"), [("relative", "absolute"), ("", "absolute"), ("/no/such", "Create")])
def test_a_temporary_directory_that_is_none_is_named(config, monkeypatch, directory, word):
    monkeypatch.setenv("TMPDIR", directory)
    with pytest.raises(UnusableError, match=rf"TMPDIR.*{word}"):
        check_surroundings(config)


@pytest.mark.parametrize(("limit", "named"), [("MIN_FREE_BYTES", "home"), ("MIN_FREE_SHARED_BYTES", "/dev/shm")])
def test_a_full_disk_and_a_full_shared_memory_are_named(config, monkeypatch, limit, named):
    monkeypatch.setattr(surroundings, limit, 1 << 60)
    with pytest.raises(UnusableError, match="free") as caught:
        check_surroundings(config)
    assert named in str(caught.value)


def test_a_shared_memory_that_is_missing_is_named(config, monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings, "SHARED_MEMORY", tmp_path / "shm")
    with pytest.raises(UnusableError, match="shared memory"):
        check_surroundings(config)


@pytest.mark.parametrize("offline", surroundings.OFFLINE)
def test_the_cache_of_models_is_written_only_where_one_may_be_downloaded(config, unusable, monkeypatch, offline):
    monkeypatch.setenv("HF_HOME", str(unusable))
    check_surroundings(config)  # the built-in model
    downloads = config.model_copy(update={"base_models": (DOWNLOADED,)})
    with pytest.raises(UnusableError, match="HF_HOME"):
        check_surroundings(downloads)
    monkeypatch.setenv(offline, "1")
    check_surroundings(downloads)


def test_up_ends_with_status_2_before_it_starts_anything(config, unusable, monkeypatch):
    def running(*_):
        raise StartError("it was started")

    monkeypatch.setattr(launch, "running", running)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert CliRunner().invoke(main.app, ["up"]).exit_code == 1
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(unusable))
    result = CliRunner().invoke(main.app, ["up"])
    assert result.exit_code == 2 and "VLLM_CACHE_ROOT" in result.output and "it was started" not in result.output


def test_caches_follow_the_usual_variables(config, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/a/cache")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "relative")
    assert surroundings._caches(config) == {
        "VLLM_CACHE_ROOT": Path("/a/cache/vllm"),
        "TORCHINDUCTOR_CACHE_DIR": Path(os.getcwd(), "relative"),
    }


def test_a_working_directory_that_was_removed_is_named(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UnusableError, match="working directory"):
        check_surroundings(config)


@pytest.mark.parametrize(
    "content", [b"not a database, but a text that is long enough", bytes(4096), b"SQLite format 3\0" + b"x" * 4096]
)
def test_a_store_that_is_no_database_is_one_sentence(config, content):
    config.home.mkdir()
    (config.home / "tandem.db").write_bytes(content)
    for arguments in (["keys", "list"], ["keys", "create", "--name", "a"], ["keys", "revoke", "x"], ["up"]):
        result = CliRunner().invoke(main.app, arguments)
        assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
        assert len(result.output.strip().splitlines()) == 1 and "store" in result.output


def test_a_directory_in_the_place_of_the_store_is_one_sentence(config):
    (config.home / "tandem.db").mkdir(parents=True)
    result = CliRunner().invoke(main.app, ["keys", "list"])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit) and "store" in result.output


@pytest.mark.parametrize("text", ["\udcff", "a\x1b[31m", "a\nb", "\x7f"])
def test_names_and_keys_of_any_text_are_one_sentence(config, text):
    result = CliRunner().invoke(main.app, ["keys", "create", "--name", text])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit)
    result = CliRunner().invoke(main.app, ["keys", "revoke", text])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)


def test_a_key_is_revoked_with_white_space_around_it(config):
    key = CliRunner().invoke(main.app, ["keys", "create", "--name", "[/INST] ü"]).output
    assert CliRunner().invoke(main.app, ["keys", "revoke", f" {key}\n"]).exit_code == 0
    assert "[/INST] ü" in CliRunner().invoke(main.app, ["keys", "list"]).output
