"""URLs, keys and proxies as users have them in their environment."""

import http.server
import pickle
import socket
import threading

import pytest
from typer.testing import CliRunner

from tandem.cli.commands.train import train
from tandem.cli.main import app as commands
from tandem.client import Client, NoAnswerError, SettingsError, StatusError
from tandem.client.address import is_loopback
from tandem.client.proxies import proxy_for
from tandem.runs.reporting.console import PlainConsole

KEY = "tdm_secretsecretsecret"
REMOTE = "http://tandem.invalid:8000"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in (*PROXIES, "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("ending", ["", "/", "//", "/v1", "/v1/", "/v1/preview", "/v1/preview/", " ", "/v1\n"])
@pytest.mark.parametrize("scheme", ["http", "HTTP", "Http"])
def test_urls_that_people_copy_work(url, key, ending, scheme):
    with Client(url.replace("http", scheme) + ending, key, retries=0) as client:
        assert client.url == url
        assert client.health().status == "ok"


def test_a_path_in_front_of_the_api_is_kept():
    with Client(f"{REMOTE}/behind/a/proxy/v1/", KEY) as client:
        assert client.url == f"{REMOTE}/behind/a/proxy"


@pytest.mark.parametrize(
    "wrong",
    [
        "localhost:8000",
        "127.0.0.1",
        "/v1",
        "ftp://host",
        "http:/host",
        "http://",
        "http:///v1",
        "https://:8000",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "http://a b:8000",
        "http://host:8000/v1?key=x",
        "http://host:8000/#v1",
        f"http://me:{KEY}@host:8000",
        f"http://{KEY}@host:8000",
        "http://host\n:8000",
        "http://\x1b[31mhost",
        "http://host:80:80",
    ],
)
def test_other_urls_are_one_sentence_without_their_password(wrong):
    with pytest.raises(SettingsError) as caught:
        Client(wrong, "tdm_k")
    assert "\n" not in str(caught.value) and "URL" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("around", [("", "\n"), ("", "\r\n"), (" ", " "), ("\t", ""), ("", "\n\n")])
def test_white_space_around_a_key_is_ignored(url, key, around):
    before, after = around
    with Client(url, before + key + after, retries=0) as client:
        assert list(client.models()) == []


@pytest.mark.parametrize(
    "inner", ["\n", "\r", "\t", " ", "\0", "\x1b", "\x7f", "é", "–", "\u200b", "\ufeff", "\udce9", "😀"]
)
@pytest.mark.parametrize("source", ["argument", "environment"])
def test_a_key_that_no_header_can_carry_is_one_sentence_that_does_not_show_it(monkeypatch, inner, source):
    wrong = f"tdm_secret{inner}secret"
    in_environment = source == "environment" and inner != "\0"  # which no variable can have
    if in_environment:
        monkeypatch.setenv("TANDEM_API_KEY", wrong)
    with pytest.raises(SettingsError) as caught:
        Client(REMOTE, None if in_environment else wrong)
    said = str(caught.value)
    assert "secret" not in said and f"U+{ord(inner):04X}" in said and "\n" not in said


@pytest.mark.parametrize("command", ["models", "jobs", "watch"])
@pytest.mark.parametrize("wrong", [f"{KEY}\n{KEY}", f"{KEY}é", f"{KEY} x"])
def test_no_command_prints_a_wrong_key(command, wrong):
    arguments = [command, *(["job"] if command == "watch" else [])]
    result = CliRunner().invoke(commands, arguments, env={"TANDEM_API_KEY": wrong, "TANDEM_URL": REMOTE})
    assert result.exit_code == 2
    assert KEY not in result.output and isinstance(result.exception, SystemExit)


def test_a_client_and_its_errors_do_not_show_the_key():
    with Client("http://127.0.0.1:9", KEY, retries=0) as client, pytest.raises(NoAnswerError) as caught:
        client.get_model("m")
    assert KEY not in repr(client) + str(caught.value) + repr(caught.value) + repr(caught.value.__cause__)
    assert KEY not in repr(pickle.dumps(caught.value))


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"]
)
def test_loopback_needs_no_proxy(monkeypatch, host):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert is_loopback(host)
    assert proxy_for(f"http://[{host}]:8000" if ":" in host else f"http://{host}:8000") is None


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks5h://x", "nonsense://", ":::", "é"]
)
def test_a_local_service_is_reached_directly_whatever_the_proxy_variables_say(url, key, monkeypatch, variable, proxy):
    monkeypatch.setenv(variable, proxy)
    with Client(url, key, retries=0) as client:
        assert client.health().status == "ok"
        client.openai()


@pytest.mark.parametrize(
    "proxy", ["socks5://me:hidden@127.0.0.1:9", "socks4://127.0.0.1:9", "nonsense://x", "http://[::1"]
)
def test_an_unusable_proxy_is_one_sentence_that_names_the_variable(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(SettingsError, match="ALL_PROXY") as caught:
        Client(REMOTE, KEY)
    assert "NO_PROXY" in str(caught.value) and "hidden" not in str(caught.value)


@pytest.mark.parametrize("excluded", ["tandem.invalid", ".invalid", "a,tandem.invalid:8000 , b", "*"])
@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_no_proxy_avoids_the_proxy(monkeypatch, proxy, excluded):
    monkeypatch.setenv("ALL_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", excluded)
    with Client(REMOTE, KEY, retries=0) as client, pytest.raises(NoAnswerError) as caught:
        client.get_model("m")
    assert "proxy" not in str(caught.value).lower()


def test_no_proxy_may_name_networks(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8, fd00::/8, 300.0.0.0/8, [::]/x")
    assert proxy_for("http://10.1.2.3:8000") is None
    assert proxy_for("http://[fd00::1]:8000") is None
    assert proxy_for("http://11.1.2.3:8000").variable == "HTTP_PROXY"


def test_an_error_says_that_a_proxy_was_asked_and_hides_its_password(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://me:hidden@127.0.0.1:{closed.getsockname()[1]}")
        with Client(REMOTE, KEY, retries=0) as client, pytest.raises(NoAnswerError) as caught:
            client.get_model("m")
    said = str(caught.value)
    assert "http_proxy" in said and "NO_PROXY=tandem.invalid" in said and "hidden" not in said


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(403, "Blocked by policy")

    def log_message(self, *_):
        pass


def test_an_answer_of_the_proxy_itself_is_known_as_such(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{proxy.server_port}")
        with Client(REMOTE, KEY, retries=0) as client, pytest.raises(StatusError, match="http_proxy"):
            client.get_model("m")
        proxy.shutdown()


@pytest.mark.parametrize("command", [["watch"], ["jobs", "--model"]])
@pytest.mark.parametrize("id", ["../keys", "a/b", "a?b=c", "a#b", "[/INST]", "%2e%2e/keys", "ü", "a b"])
def test_an_id_of_any_text_is_not_found_rather_than_another_path(url, key, command, id):
    environment = {"TANDEM_URL": url, "TANDEM_API_KEY": key, "COLUMNS": "200"}
    result = CliRunner().invoke(commands, [*command, id], env=environment)
    assert isinstance(result.exception, SystemExit | None)
    assert "404" in result.output or "422" in result.output or result.exit_code == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TANDEM_API_KEY", f"{KEY}é"),
        ("TANDEM_API_KEY", ""),
        ("TANDEM_URL", "host:80"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
    ],
)
def test_a_run_with_a_wrong_setting_ends_with_status_2_and_does_not_show_the_key(
    tmp_path, monkeypatch, capsys, variable, value
):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    monkeypatch.setenv("TANDEM_API_KEY", KEY)
    monkeypatch.setenv("TANDEM_URL", REMOTE)
    monkeypatch.setenv(variable, value)
    task = tmp_path / "task.yaml"
    task.write_text("name: a\nenvironment: {class: 'tandem.rl.environments.toy:Largest'}\ntraining: {jobs: 1}\n")
    assert train(task, False, PlainConsole(), PlainConsole(stderr=True)) == 2
    shown = "".join(capsys.readouterr())
    assert KEY not in shown and shown.strip()
