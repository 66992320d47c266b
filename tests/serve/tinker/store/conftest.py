from itertools import count

import pytest

from tandem.cluster.calls.call import Anchor, CallResult, CallUsage, SavedState
from tandem.cluster.config.tinker import TinkerConfig
from tandem.serve.tinker.store.calls import digest_of
from tandem.serve.tinker.store.saves import save_options
from tandem.serve.tinker.store.store import TinkerStore

BASE = "tandem/tiny"


@pytest.fixture
def tinker(store):
    return TinkerStore(store.database, TinkerConfig(gap_s=60, result_s=3600, max_waiting_calls=8))


@pytest.fixture
def session(tinker):
    return tinker.sessions.create("team", "key")


@pytest.fixture
def new_run(tinker, session):
    numbers = count()

    def new_run(entity="team", **more):
        of = session if entity == "team" else tinker.sessions.create(entity, None)
        return tinker.runs.create(
            entity, "key", of.id, more.pop("number", next(numbers)), BASE, None, None, {"seed": 1}, **more
        )

    return new_run


@pytest.fixture
def run(new_run):
    return new_run()


class Client:
    """Submits calls of a run, and executes them as a coordinator does."""

    def __init__(self, tinker, run):
        self.tinker, self.run, self.seq, self.claimed = tinker, run, 0, None

    def submit(self, kind, seq=None, options=None, body=None):
        self.seq = self.seq + 1 if seq is None else seq
        options = options or {}
        key = f"calls/{self.run.id}-{self.seq}" if kind in ("forward_backward", "forward") else None
        sha = digest_of({"body": body, **options})
        return self.tinker.calls.submit("team", self.run.id, self.seq, kind, sha, key, options, 7)

    def claim(self, owner="coordinator"):
        self.claimed = self.tinker.claims.claim_run(BASE, owner, 30)
        return self.claimed

    def next(self):
        return next(call for call in self.tinker.claims.next_calls(self.claimed) if call.outcome is None)

    def answer(self, content=b"{}", usage=CallUsage(), saved=None, anchor=None):
        call = self.next()
        return self.tinker.claims.answer(
            self.claimed, call, CallResult(content, usage=usage, saved=saved, anchor=anchor)
        )

    def refuse(self, message="no", category="user"):
        self.tinker.claims.refuse(self.claimed, self.next(), message, category)

    def save(self, kind="save_weights", digest="d1", is_anchor=True, **options):
        """Submit a save and execute it; return its outcome."""
        request = self.submit(kind, options=save_options(options.pop("name", None), **options))
        if self.claimed is None:
            self.claim()
        anchor = Anchor(digest, self.seq, True) if is_anchor else None
        self.answer(b"", saved=SavedState(digest, 100, is_anchor, True), anchor=anchor)
        return self.tinker.calls.outcome(request, "team")


@pytest.fixture
def client(tinker, run):
    return Client(tinker, run)


@pytest.fixture
def new_client(tinker, new_run):
    return lambda **more: Client(tinker, new_run(**more))
