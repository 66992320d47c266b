"""The page in a real browser, over the real application: a SQLite store, artifacts in a folder, and a fake engine."""

import json
import os
import re
import runpy
import shutil
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from paths import ROOT
from waiting import wait_until

from tandem.serve.web import build

SERVE_TESTS = ROOT / "tests" / "serve"
sys.path.append(str(SERVE_TESTS))  # its fakes are imported below
sys.path.append(str(Path(__file__).parent))

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
MAX_CLICKS = 3
ROLES = ("infer", "train", "admin")
ENTITY = "team"


def chromium():
    """Return the path of the browser, None without one. TANDEM_CHROMIUM names one."""
    return os.environ.get("TANDEM_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def unavailable(reason):
    """Skip, but fail in CI, where everything must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Served:
    """A service with seeded data. `seeded` has what each function of seeding.py returned, by its name."""

    url: str
    services: object
    keys: dict
    """One key of entity "team" for each role."""
    coordinator: dict
    """The coordinator's status of the base model."""
    seeded: dict = field(default_factory=dict)

    @property
    def store(self):
        return self.services.store

    @property
    def engine(self):
        return self.services.engine

    def http(self, role="admin"):
        """Return a client of the API with the key of a role."""
        headers = {"authorization": f"Bearer {self.keys[role]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def session(self, role):
        """Return what the page keeps in the browser for a key that is signed in."""
        own = self.http(role).get("/v1/preview/me").json()
        stored = {name: own[name] for name in ("id", "name", "entity", "role")} | {"key": self.keys[role]}
        return {"active": own["id"], "keys": [stored]}


@pytest.fixture(scope="session")
def page_files():
    """The built page. It is built if its sources changed."""
    try:
        build.build()
    except build.BuildError as error:
        unavailable(f"The page can't be built. {error}")
    return build.DIST


@pytest.fixture(scope="session")
def served(page_files, tmp_path_factory):
    """The application on a port, with the data of seeding.py. Its tests only read it, or make objects of their own."""
    import seeding
    from cluster_views import FakeView
    from serve_fakes import Engine, TextModel, Trials

    from tandem.cluster.artifacts import Artifacts
    from tandem.cluster.config import TandemConfig
    from tandem.cluster.jobs.preparation import PreparationWorker
    from tandem.serve.api.application import create_app
    from tandem.serve.api.services import Services
    from tandem.serve.keys import create_key
    from tandem.serve.modelarts.api.projects import cluster_specs
    from tandem.serve.store.store import Store

    home = tmp_path_factory.mktemp("served")
    fakes = runpy.run_path(str(SERVE_TESTS / "conftest.py"))
    base, status = (
        fakes["BASE"],
        {"running_jobs": [], "running_runs": [], "learners_running": True, "waiting_for": None},
    )

    async def coordinator_status():
        return {base: status | {"last_error": None, "alarm": None}}

    async def engine_faults():
        return {}

    store, artifacts = Store(f"sqlite:///{home / 'tandem.db'}"), Artifacts(str(home / "artifacts"))
    store.claims.put_initial_version(base, fakes["ZERO"])
    services = Services(
        trials=Trials(),
        config=TandemConfig(home=home),
        store=store,
        artifacts=artifacts,
        engine=Engine(),
        base_models=[base],
        preparation=PreparationWorker({base: TextModel()}, artifacts),
        coordinator_status=coordinator_status,
        engine_faults=engine_faults,
        cluster=FakeView(),
    )
    app = create_app(services)
    app.dependency_overrides[cluster_specs] = lambda: lambda: fakes["SPECS"]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    served = Served(url, services, {role: create_key(store, f"{role} key", ENTITY, role) for role in ROLES}, status)
    for name, seed in seeding.SEEDS.items():
        served.seeded[name] = seed(served)
    yield served
    server.should_exit = True
    thread.join()
    store.close()


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, which tests of other files don't expect
def browser():
    """Debian's chromium."""
    executable = chromium()
    if executable is None:
        unavailable("There is no chromium. Run bash scripts/install_browser.sh, or name one in TANDEM_CHROMIUM.")
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


@dataclass
class Watch:
    """What a page must not do: errors in the console, violations of its policy, requests to other origins."""

    origin: str
    allowed: list = field(default_factory=list)
    faults: list = field(default_factory=list)

    def allow(self, pattern):
        """Expect faults that match, such as r"status of 404" when a test asks for something that isn't there."""
        self.allowed.append(re.compile(pattern))

    def attach(self, page):
        page.on("console", lambda message: message.type == "error" and self.faults.append(message.text))
        page.on("pageerror", lambda error: self.faults.append(f"uncaught: {error}"))
        page.on("request", lambda request: self._check(request.url))

    def _check(self, url):
        if not url.startswith((self.origin, "data:", "blob:")):
            self.faults.append(f"request to another origin: {url}")

    def check(self):
        unexpected = [fault for fault in self.faults if not any(allowed.search(fault) for allowed in self.allowed)]
        assert unexpected == []


@pytest.fixture
def watch(served):
    watch = Watch(served.url)
    yield watch
    watch.check()


@pytest.fixture
def open_page(browser, served, watch):
    """A function that opens the page: open_page("#/keys", role="admin", width=390, dark=True).

    `role` None: nobody is signed in. Each call has a browser profile of its own.
    """
    contexts = []

    def open_page(address="#/", role="train", width=1280, height=800, dark=False, **options):
        stored = [] if role is None else [{"name": "tandem.session", "value": json.dumps(served.session(role))}]
        state = {"cookies": [], "origins": [{"origin": served.url, "localStorage": stored}]}
        context = browser.new_context(
            storage_state=state,
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            **options,
        )
        context.set_default_timeout(20_000)
        contexts.append(context)
        page = context.new_page()
        watch.attach(page)
        page.goto(f"{served.url}/{address}")
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def browser_page(open_page):
    """The page, signed in with role train. Go to a view with browser_page.goto(f"{served.url}/#/jobs")."""
    return open_page()


class Clicks:
    """Clicks that are counted: a task must be done in at most three."""

    def __init__(self):
        self.count = 0

    def __call__(self, locator):
        """Click on it."""
        self.count += 1
        locator.click()


@pytest.fixture
def clicks():
    """Click with clicks(locator); the test fails after more than three."""
    clicks = Clicks()
    yield clicks
    assert clicks.count <= MAX_CLICKS, f"{clicks.count} clicks"
