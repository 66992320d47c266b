"""The bill, worked by hand: amounts that engines and jobs report, prices that change, and sums in every direction."""

import csv
import io
import uuid
from datetime import timedelta
from itertools import combinations

import pytest

from tandem.cluster.config import PricesConfig
from tandem.cluster.engine.metrics.usage import Charged, EngineUsage, Sampling, UsageBatch, Used
from tandem.cluster.jobs.phases import Phase
from tandem.serve.keys import create_key
from tandem.serve.usage.costs import prices_content

pytestmark = pytest.mark.parametrize("store_url", ["sqlite", "postgresql"], indirect=True)
BASE = "tandem/tiny"
AMOUNTS = (
    *("requests", "prompt_tokens", "cached_prompt_tokens", "sampled_tokens", "scored_tokens", "engine_scored_tokens"),
    *("trained_tokens", "seconds", "learner_seconds", "engine_seconds", "cpu_seconds"),
)
GROUPS = ("base_model", "day", "hour", "job", "key", "model", "phase", "project", "version")


@pytest.fixture
def count(store):
    """A function that records what an engine has counted."""
    numbers = iter(range(1, 1000))

    def count(charged, sampling=(), source="replica", **amounts):
        batch = UsageBatch(next(numbers), {charged: Used(**amounts)}, list(sampling))
        store.usage.record(EngineUsage(source, BASE, [batch]))

    return count


@pytest.fixture
def prices(store):
    return lambda **rates: store.usage.set_prices(prices_content(PricesConfig(**rates)))


@pytest.fixture
def usage(http):
    def usage(**query):
        response = http.get("/v1/preview/usage", params=query)
        assert response.status_code == 200, response.text
        return response.json()

    return usage


@pytest.fixture
def key_id(http, store):
    return store.keys.all("team")[0].id


@pytest.fixture
def busy(clock, add_model, add_job, claim, store, count, prices, key_id):
    """Two models, two keys, a job, over two days, under two sets of prices."""
    prices(sampled_tokens_per_million=2.0, prompt_tokens_per_million=1.0, cached_prompt_tokens_per_million=0.1)
    first, second = add_model("first"), add_model("second")
    other_key = store.keys.add("=1+cmd", "team", uuid.uuid4().hex, "infer").id
    count(Charged("sample", "team", key_id, first.id, 0), requests=2, prompt_tokens=1000, sampled_tokens=50)
    count(Charged("sample", "team", other_key, first.id, 1), prompt_tokens=4000, cached_prompt_tokens=3000)
    clock.advance(86400)
    prices(sampled_tokens_per_million=4.0, learner_second=0.01, currency="EUR")
    count(Charged("sample", "team", key_id, second.id, 0), sampled_tokens=500, engine_seconds=2.5)
    count(Charged("sample", "team", key_id, "", 0), sampled_tokens=7)
    count(Charged("sample", "others", key_id, "", 0), sampled_tokens=10**9)
    job = add_job(second)
    claimed = claim()
    at = clock.now.timestamp()
    phases = [
        Phase("load", at, at + 10, 10.0, learner_seconds=20.0),
        Phase("step", at + 10, at + 15, 5.0, learner_seconds=10.0, trained_tokens=333),
    ]
    store.claims.record_phases(claimed, phases)
    count(Charged("score", job_id=job.id), engine_seconds=1.5)
    count(Charged(), engine_seconds=99.0)
    clock.advance(3600)
    return {"first": first, "second": second, "job": job, "key": key_id, "other_key": other_key}


def test_the_bill_is_the_sum_of_amounts_times_their_prices(busy, usage):
    total = usage()["total"]
    assert {name: total[name] for name in AMOUNTS} == {
        "requests": 2, "prompt_tokens": 5000, "cached_prompt_tokens": 3000, "sampled_tokens": 557,
        "scored_tokens": 0, "engine_scored_tokens": 0, "trained_tokens": 333, "seconds": 15.0,
        "learner_seconds": 30.0, "engine_seconds": 4.0, "cpu_seconds": 0.0,
    }  # fmt: skip
    # 2,000 computed prompt tokens, 3,000 cached ones and 50 sampled ones; then 507 sampled ones and 30 learner-seconds
    assert total["costs"] == {
        "EUR": pytest.approx(507 * 4e-6 + 30 * 0.01),
        "USD": pytest.approx(2000 * 1e-6 + 3000 * 0.1e-6 + 50 * 2e-6),
    }


def test_a_changed_price_does_not_change_yesterdays_bill(busy, usage, prices, clock):
    yesterday = {"from": "2026-01-01", "to": "2026-01-02"}
    before = usage(**yesterday)
    prices(sampled_tokens_per_million=1000.0, prompt_tokens_per_million=1000.0)
    assert usage(**yesterday) == before
    prices()
    assert usage(**yesterday) == before
    assert before["total"]["costs"] == {"USD": pytest.approx(0.0024)}


def test_groups_of_all_kinds_have_the_same_total(busy, usage):
    whole = usage()["total"]
    for groups in (*combinations(GROUPS, 1), *combinations(GROUPS, 2), ("key", "model", "day")):
        grouped = usage(group_by=groups, limit=1000)
        assert grouped["total"] == whole and not grouped["has_more"]
        for name in AMOUNTS:
            assert sum(item[name] for item in grouped["data"]) == pytest.approx(whole[name]), groups
        for currency, money in whole["costs"].items():
            assert sum(item["costs"].get(currency, 0) for item in grouped["data"]) == pytest.approx(money), groups
        assert len({item["id"] for item in grouped["data"]}) == len(grouped["data"])


def test_groups_have_names_and_the_most_expensive_is_first(busy, usage):
    items = usage(group_by="model")["data"]
    assert [(item["model_name"], item["sampled_tokens"]) for item in items] == [
        ("team/project/second", 500), ("team/project/first", 50), (BASE, 7)
    ]  # fmt: skip
    keys = {item["key"]: item["key_name"] for item in usage(group_by="key")["data"]}
    assert keys == {busy["key"]: "tests", busy["other_key"]: "=1+cmd", "": ""}
    phases = {item["phase"]: item["engine_seconds"] for item in usage(group_by="phase", job_id=busy["job"].id)["data"]}
    assert phases == {"load": 0, "step": 0, "score": 1.5}
    assert [item["day"] for item in usage(group_by="day")["data"]] == ["2026-01-01", "2026-01-02"]
    assert {item["project"] for item in usage(group_by="project")["data"]} == {"project", ""}


def test_filters_and_times_select_rows(busy, usage):
    assert usage(model_id=busy["first"].id)["total"]["prompt_tokens"] == 5000
    assert usage(model_id=busy["first"].id, key_id=busy["key"])["total"]["prompt_tokens"] == 1000
    assert usage(base_model="another")["total"]["requests"] == 0
    day = usage(**{"from": "2026-01-02T09:00:00+09:00", "to": "2026-01-02T01:00:00Z"})
    assert (day["begin"], day["end"]) == ("2026-01-02T00:00:00Z", "2026-01-02T01:00:00Z")
    assert day["total"]["sampled_tokens"] == 507


def test_pages_follow_each_other(busy, usage):
    whole = usage(group_by=["model", "key"])["data"]
    found, after = [], {}
    while True:
        page = usage(group_by=["model", "key"], limit=1, **after)
        found += page["data"]
        if not page["has_more"]:
            break
        after = {"after": page["last_id"]}
    assert found == whole and len(whole) > 2


REFUSED = (
    {"group_by": "entity"},
    {"group_by": ["day", "hour", "job", "key"]},
    {"from": "2026-01-02", "to": "2026-01-01"},
    {"from": "yesterday"},
    {"after": "model=gone"},
    {"limit": 0},
    {"format": "xml"},
)


def test_what_cannot_be_asked_is_refused(http):
    for query in REFUSED:
        response = http.get("/v1/preview/usage", params=query)
        assert response.status_code == 422, (query, response.text)


@pytest.mark.parametrize("how", [{"params": {"format": "csv"}}, {"headers": {"accept": "text/csv"}}])
def test_a_spreadsheet_has_the_same_numbers_and_no_formulas(busy, http, usage, how):
    params = how.get("params", {}) | {"group_by": ["key", "model"]}
    response = http.get("/v1/preview/usage", params=params, headers=how.get("headers"))
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in response.headers["content-disposition"]
    rows = list(csv.DictReader(io.StringIO(response.text)))
    total = usage()["total"]
    for name in AMOUNTS:
        assert sum(float(row[name]) for row in rows) == pytest.approx(total[name])
    assert sum(float(row["cost_EUR"]) for row in rows) == pytest.approx(total["costs"]["EUR"])
    assert {row["key_name"] for row in rows} == {"tests", "'=1+cmd", ""}
    assert not any(cell.startswith(("=", "+", "-", "@")) for row in rows for cell in row.values())


def test_other_entities_see_nothing_of_it(busy, http, store):
    stranger = {"Authorization": f"Bearer {create_key(store, 'stranger', 'strangers')}"}
    assert http.get("/v1/preview/usage", headers=stranger).json()["total"]["requests"] == 0
    path = f"/v1/preview/training-jobs/{busy['job'].id}/phases"
    assert http.get(path, headers=stranger).status_code == 404
    asked = {"model_id": busy["first"].id}
    assert http.get("/v1/preview/activity", params=asked, headers=stranger).status_code == 404
    reader = {"Authorization": f"Bearer {create_key(store, 'reader', 'team', 'infer')}"}
    for route in ("/v1/preview/usage", path, "/v1/preview/activity"):
        assert http.get(route, headers=reader).status_code == 403


def test_a_batch_counts_once_however_often_it_arrives(store, usage, clock):
    charged = Charged("sample", "team", "k", "", 0)
    batches = [UsageBatch(1, {charged: Used(sampled_tokens=5)}), UsageBatch(2, {charged: Used(sampled_tokens=7)})]
    store.usage.record(EngineUsage("replica", BASE, batches[:1]))
    store.usage.record(EngineUsage("replica", BASE, batches))
    store.usage.record(EngineUsage("replica", BASE, batches))
    store.usage.record(EngineUsage("another", BASE, batches[:1]))
    clock.advance(1)
    assert usage()["total"]["sampled_tokens"] == 5 + 7 + 5


def test_old_hours_become_days_with_the_same_sums(busy, store, clock, usage):
    whole = {"from": "2026-01-01", "to": "2026-01-03"}
    before = {name: usage(group_by=name, **whole) for name in ("day", "model", "key", "job", "phase")}
    clock.advance(86400 * 70)
    store.usage.compact()
    store.usage.compact()
    assert {name: usage(group_by=name, **whole) for name in before} == before
    assert {item["hour"][11:] for item in usage(group_by="hour", **whole)["data"]} == {"00:00Z"}
    assert all(item["version"].endswith("step-1") for item in usage(group_by="version", **whole)["data"])


def test_the_phases_of_a_job_and_what_it_cost(busy, http, store, clock):
    path = f"/v1/preview/training-jobs/{busy['job'].id}/phases"
    found = http.get(path).json()
    assert [(one["name"], one["seconds"], one["attempt"]) for one in found["data"]] == [
        ("load", 10.0, 1), ("step", 5.0, 1), ("wait_lease", 3585.0, 1)
    ]  # fmt: skip
    assert found["seconds"] == 3600.0 and found["idle_seconds"] == 0 and found["state"] == "running"
    assert [(one["name"], one["learner_seconds"], one["trained_tokens"]) for one in found["totals"]] == [
        ("wait_lease", 0, 0), ("load", 20, 0), ("step", 10, 333)
    ]  # fmt: skip
    assert found["costs"] == {"EUR": pytest.approx(0.3)}
    rest = http.get(path, params={"after": found["data"][0]["id"], "limit": 1}).json()
    assert [one["name"] for one in rest["data"]] == ["step"] and rest["has_more"]
    assert http.get(f"/v1/preview/training-jobs/{uuid.uuid4()}/phases").status_code == 404


def test_learner_and_rollouts_work_or_wait(store, clock, add_model, add_job, claim, count, http):
    """Rollouts for 20 s, a job of 40 s of which it trains 25, rollouts again from its last 5 s on."""
    model = add_model()
    began = clock.now
    at = began.timestamp()
    count(Charged("sample", "team", "k", model.id, 0), [Sampling(model.id, at, at + 8)])
    count(Charged("sample", "team", "k", model.id, 0), [Sampling(model.id, at + 9, at + 20)])  # a short pause
    clock.advance(20)
    add_job(model)
    claimed = claim()
    phases = [
        Phase("prepare", at + 20, at + 30, 10.0),
        Phase("step", at + 30, at + 55, 25.0, learner_seconds=25.0),
        Phase("publish", at + 55, at + 60, 5.0),
    ]
    store.claims.record_phases(claimed, phases)
    clock.advance(40)
    store.claims.fail(claimed, "diverged")
    count(Charged("sample", "team", "k", model.id, 1), [Sampling(model.id, at + 50, at + 80)])
    clock.advance(40)
    asked = {"from": began.isoformat(), "to": (began + timedelta(seconds=100)).isoformat(), "bins": 5}
    found = http.get("/v1/preview/activity", params=asked | {"model_id": model.id}).json()
    states = ("both_work", "learner_works", "rollouts_run", "job_waits", "idle")
    assert [[one[state] for state in states] for one in found["bins"]] == [
        [0, 0, 20, 0, 0],
        [0, 10, 0, 10, 0],
        [5, 10, 5, 0, 0],
        [0, 0, 20, 0, 0],
        [0, 0, 0, 0, 20],
    ]
    assert [found["total"][state] for state in states] == [5, 20, 45, 10, 20]
    assert http.get("/v1/preview/activity", params=asked).json()["bins"] == found["bins"]
    assert http.get("/v1/preview/activity", params=asked | {"base_model": "another"}).json()["models"] == []
    too_long = {"from": "2025-01-01", "to": "2026-01-01"}
    assert http.get("/v1/preview/activity", params=too_long).status_code == 422
