"""The files of the page: headers, compression, caching, prefixes, and a service without a built page."""

import gzip
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from tandem.serve.api import error_responses
from tandem.serve.web import routes

SCRIPT = "let answer = 42;\n" * 50
PAGE = '<!doctype html><script type="module" src="assets/main-A.js"></script>'


@pytest.fixture
def dist(tmp_path, monkeypatch):
    """A built page."""
    assets = tmp_path / "assets"
    assets.mkdir()
    (tmp_path / "index.html").write_text(PAGE)
    (tmp_path / "docs.html").write_text("<!doctype html>reference")
    (assets / "main-A.js").write_text(SCRIPT)
    (assets / "main-A.js.gz").write_bytes(gzip.compress(SCRIPT.encode()))
    (tmp_path / "secret.js").write_text("outside of assets")
    monkeypatch.setattr(routes, "DIST", tmp_path)
    return tmp_path


def client(root_path=""):
    app = FastAPI(docs_url=None, redoc_url=None, redirect_slashes=False)
    error_responses.install(app)
    routes.add_routes(app)
    return TestClient(app, "http://tandem", root_path=root_path, follow_redirects=False)


def test_the_page_has_a_policy_without_inline_script(dist):
    response = client().get("/")
    assert response.text == PAGE and response.headers["content-type"].startswith("text/html")
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["default-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["/", "/docs", "/assets/main-A.js"])
def test_a_file_that_the_browser_has_isnt_sent_again(dist, path):
    first = client().get(path)
    again = client().get(path, headers={"if-none-match": f'"other", {first.headers["etag"]}'})
    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert again.headers["etag"] == first.headers["etag"] and "content-security-policy" in again.headers
    assert client().head(path).status_code == 200


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("gzip, br", "gzip"), ("gzip;q=0", None), ("identity", None), ("br;q=1, GZIP;q=0.5", "gzip")],
)
def test_compressed_files_go_to_browsers_that_accept_them(dist, accepted, coding):
    response = client().get("/assets/main-A.js", headers={"accept-encoding": accepted})
    assert response.headers.get("content-encoding") == coding and response.text == SCRIPT
    assert "immutable" in response.headers["cache-control"] and response.headers["vary"] == "accept-encoding"
    assert response.headers["content-type"].startswith("text/javascript")
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["other.js", "..%2fsecret.js", "%2e%2e/secret.js", "main-A.js.gz", "a%00.js"])
def test_no_other_file_is_sent(dist, name):
    response = client().get(f"/assets/{name}")
    assert response.status_code == 404 and "outside" not in response.text


def test_it_works_behind_a_prefix(dist):
    """Ray Serve's proxy passes the whole path on, and says the prefix in root_path."""
    http = client("/some/tandem")
    assert http.get("/some/tandem/").text == PAGE
    assert http.get("/some/tandem/assets/main-A.js").text == SCRIPT
    moved = http.get("/some/tandem")
    assert moved.status_code == 307 and moved.headers["location"] == "tandem/"


def test_redoc_leads_to_the_reference(dist):
    assert client().get("/redoc").headers["location"] == "docs"


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_without_a_built_page_it_says_how_to_build_it(tmp_path, monkeypatch, path):
    monkeypatch.setattr(routes, "DIST", tmp_path / "nothing")
    response = client().get(path)
    assert response.status_code == 200 and "make web" in response.text and "API works" in response.text
    assert response.headers["content-security-policy"] == routes.POLICY and "<script" not in response.text


SOURCES = Path(routes.__file__).parent / "src"


def test_the_sources_put_no_text_in_as_html():
    """A name or a message could be HTML. The page has one way to show it: as text."""
    files = [path for path in SOURCES.rglob("*") if path.suffix in (".ts", ".tsx", ".js")]
    assert len(files) > 20
    banned = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|DOMParser"
    )
    assert [path.name for path in files if banned.search(path.read_text())] == []


def test_the_pages_have_no_inline_script_and_no_address_of_another_site():
    for path in SOURCES.glob("*.html"):
        html = path.read_text()
        assert re.findall(r"<script[^>]*>(?=[^<])", html) == [] and " style=" not in html and "<style" not in html
        assert not re.search(r"(src|href)=\"(?!assets/)", html), "addresses must be relative, for prefixes"
