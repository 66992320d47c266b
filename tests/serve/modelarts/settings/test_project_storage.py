"""The paths that jobs of a project may use."""

import pytest

from tandem.serve.modelarts.settings.project_storage import PathDeniedError, PathInvalidError, ProjectStorage


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "project" / "bucket" / "data").mkdir(parents=True)
    (tmp_path / "shared" / "team").mkdir(parents=True)
    (tmp_path / "secret.txt").write_text("not yours")
    return ProjectStorage(str(tmp_path / "project"), (f"file://{tmp_path}/shared/team", "memory://own/prefix"))


@pytest.mark.parametrize("url", ["/bucket/data", "/bucket/data/", "obs://bucket/data", "/bucket//data/."])
def test_bucket_paths_lie_below_the_projects_root(storage, tmp_path, url):
    location = storage.resolve(url)
    assert location.url == str(tmp_path / "project" / "bucket" / "data")
    assert location.is_directory()


def test_other_urls_lie_below_a_configured_root(storage, tmp_path):
    assert storage.resolve(f"file://{tmp_path}/shared/team/a").url == str(tmp_path / "shared" / "team" / "a")
    location = storage.resolve("memory://own/prefix/run")
    location.write("x.txt", b"1\n2\n")
    assert location.url == "memory:///own/prefix/run"
    assert list(location.lines(location.files()[0])) == [b"1\n", b"2\n"]


@pytest.mark.parametrize(
    "url",
    [
        "/bucket/../../secret.txt",
        "obs://bucket/../../secret.txt",
        "file:///etc/passwd",
        "file://{tmp}/shared/team/../../secret.txt",
        "file://{tmp}/shared/teammates/x",
        "file://{tmp}/shared",
        "memory://own/other",
        "memory://own/prefixed",
        "s3://anything/at/all",
        "http://127.0.0.1/",
    ],
)
def test_all_other_paths_are_denied(storage, tmp_path, url):
    with pytest.raises(PathDeniedError):
        storage.resolve(url.format(tmp=tmp_path))


def test_a_link_out_of_the_storage_is_denied(storage, tmp_path):
    (tmp_path / "project" / "bucket" / "out").symlink_to(tmp_path)
    with pytest.raises(PathDeniedError, match="link"):
        storage.resolve("/bucket/out/secret.txt")
    assert storage.resolve("/bucket/data/secret.txt").exists() is False


@pytest.mark.parametrize("url", ["", "relative/path", "/", "/.", "obs://", "/bucket/\x00", "\\\\host\\share"])
def test_text_that_is_no_path_is_rejected(storage, url):
    with pytest.raises(PathInvalidError):
        storage.resolve(url)


@pytest.mark.parametrize("name", ["", "..", "a/b", "../x", ".hidden", "a b", "a" * 129])
def test_a_dataset_has_a_plain_name(storage, name):
    with pytest.raises(PathInvalidError):
        storage.dataset(name, "v1")
    with pytest.raises(PathInvalidError):
        storage.dataset("d", name)


def test_a_fingerprint_changes_with_the_files(storage, tmp_path):
    version = storage.dataset("d", "v1")
    (tmp_path / "project" / "datasets" / "d" / "v1").mkdir(parents=True)
    version.write("a.jsonl", b"1\n")
    first = version.fingerprint()
    assert version.fingerprint() == first
    version.write("b.jsonl", b"1\n")
    second = version.fingerprint()
    version.write("b.jsonl", b"22\n")
    assert len({first, second, version.fingerprint()}) == 3


def test_a_directory_is_fetched_with_its_subdirectories(storage, tmp_path):
    location = storage.resolve("/bucket/data")
    location.write("boot.py", b"print()")
    (tmp_path / "project" / "bucket" / "data" / "lib").mkdir()
    (tmp_path / "project" / "bucket" / "data" / "lib" / "more.py").write_text("1")
    (tmp_path / "copy").mkdir()
    location.fetch(tmp_path / "copy")
    assert (tmp_path / "copy" / "boot.py").read_text() == "print()"
    assert (tmp_path / "copy" / "lib" / "more.py").read_text() == "1"
