"""Archives, tokenizers and the SDK's command line against the real application over SQLite."""

import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from run_data import BASE
from starlette.requests import Request

from tandem.serve.adapters.tokenizers import local_model
from tandem.serve.tinker.api.rest.tokenizers import tokenizer_id


def test_an_archive_has_the_files_of_the_adapter_and_its_link_ends(raw, rest, data, clock, store, key):
    run = data.run()
    data.save(run, "a", "save_for_sampler")
    at = f"/api/v1/training_runs/{run.id}/checkpoints/sampler_weights/a"
    redirect = raw.get(f"{at}/archive")
    assert redirect.status_code == 302 and "expires" in redirect.headers
    link = redirect.headers["location"]
    with tarfile.open(fileobj=io.BytesIO(httpx.get(link).content)) as archive:
        assert archive.getnames() == ["adapter_config.json", "adapter_model.safetensors"]
        assert json.load(archive.extractfile("adapter_config.json")) == {"r": 4}
    part = httpx.get(link, headers={"range": "bytes=512-527"})
    assert part.status_code == 206 and len(part.content) == 16
    assert key not in link and httpx.get(link[:-4] + "x").status_code == 403
    assert httpx.get(link.replace("/files/", "/files/x")).status_code == 403
    clock.advance(3599)
    assert httpx.get(link).status_code == 200
    clock.advance(2)
    assert httpx.get(link).status_code == 403


def test_a_link_ends_with_its_checkpoint_and_its_key(raw, rest, data, store):
    run = data.run()
    links = []
    for name in ("a", "b"):
        data.save(run, name)
        links.append(raw.get(f"/api/v1/training_runs/{run.id}/checkpoints/weights/{name}/archive").headers["location"])
    rest.delete_checkpoint(run.id, "weights/a").result()
    assert [httpx.get(link).status_code for link in links] == [404, 200]
    for row in store.keys.all("team"):
        store.keys.revoke(row.id)
    assert httpx.get(links[1]).status_code == 401


def test_a_tokenizer_is_an_archive_in_a_directory_of_its_base_model(raw, services):
    answer = raw.get(f"/api/v1/tokenizers/{BASE}")
    assert answer.status_code == 200
    directory = local_model(services.config.base_model(BASE).path)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        names = archive.getnames()
        assert {f"{BASE}/tokenizer.json", f"{BASE}/tokenizer_config.json", f"{BASE}/config.json"} <= set(names)
        for name in names:
            assert archive.extractfile(name).read() == (directory / name.removeprefix(f"{BASE}/")).read_bytes()
    assert not any("safetensors" in name for name in names)
    again = raw.get(f"/api/v1/tokenizers/{BASE}", headers={"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304
    unknown = raw.get("/api/v1/tokenizers/no/such")
    assert unknown.status_code == 404 and BASE in unknown.json()["error"]["message"]


@pytest.fixture
def command(app, address, key, monkeypatch):
    """Run the SDK's command line, and return its output."""
    from click.testing import CliRunner
    from tinker.cli.__main__ import main_cli
    from tinker.lib.public_interfaces import rest_client_common

    cache = type(rest_client_common.sessionless_holder_cache)  # of clients, by what isn't read from the environment
    monkeypatch.setattr(rest_client_common, "sessionless_holder_cache", cache())
    monkeypatch.setenv("TINKER_BASE_URL", address)
    monkeypatch.setenv("TINKER_API_KEY", f"tml-{key}")

    def command(*arguments):
        result = CliRunner().invoke(main_cli, ["--format", "json", *arguments])
        assert result.exit_code == 0, (result.output, result.exception)
        return json.loads(result.stdout)

    return command


def test_the_command_line_lists_runs_and_checkpoints(command, data):
    run = data.run()
    path = data.save(run, "a")
    assert [one["training_run_id"] for one in command("run", "list")["runs"]] == [run.id]
    assert command("run", "info", run.id)["base_model"] == BASE
    assert [one["tinker_path"] for one in command("checkpoint", "list")["checkpoints"]] == [path]
    assert command("checkpoint", "list", "--run-id", run.id)["checkpoints"]
    assert command("checkpoint", "info", path)["lora_rank"] == 4
    assert command("checkpoint", "delete", "--yes", path) == {"deleted_count": 1, "failed": []}


def test_the_command_line_downloads_a_checkpoint(command, data, tmp_path):
    """It makes a run from the checkpoint, exports it, fetches each file, and deletes the export."""
    path = data.save(data.run(), "a", value=3.0)
    with ThreadPoolExecutor() as pool:
        download = pool.submit(command, "checkpoint", "download", path, "--output", str(tmp_path / "out"))
        while not download.done():
            data.answer_all(data.checkpoint(3.0))
    destination = download.result()["destination"]
    [folder] = (tmp_path / "out").iterdir()
    assert destination == str(folder)
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.parametrize(
    ("client", "headers", "expected"),
    [
        ("127.0.0.1", {}, "directory"),
        ("10.0.0.7", {}, BASE),
        ("127.0.0.1", {"x-forwarded-for": "10.0.0.7"}, BASE),
    ],
)
def test_a_tokenizer_is_a_directory_only_on_this_machine(services, client, headers, expected):

    raw_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    request = Request({"type": "http", "client": (client, 1), "headers": raw_headers})
    config, base = services.config, services.config.base_model(BASE)
    expected = str(local_model(base.path)) if expected == "directory" else expected
    assert tokenizer_id(request, config, BASE) == expected

    def changed(**settings):
        return config.model_copy(update=settings)

    of_the_hub = changed(base_models=(base.model_copy(update={"path": "Qwen/Qwen3-8B"}),))
    assert tokenizer_id(request, of_the_hub, BASE) == "Qwen/Qwen3-8B"
    told = changed(tinker=config.tinker.model_copy(update={"tokenizers": {BASE: "/shared/tiny"}}))
    assert tokenizer_id(request, told, BASE) == "/shared/tiny"
