"""The ledger in the page: what yesterday cost, where the time of a job went, and who waited for whom."""

import csv
import re

import pytest
from playwright.sync_api import expect
from seeding_usage import HOSTILE


@pytest.fixture
def seeded(served):
    return served.seeded["usage"]


def test_what_yesterday_cost(browser_page, seeded, clicks):
    clicks(browser_page.get_by_role("link", name="Usage", exact=True))
    clicks(browser_page.get_by_role("button", name="Yesterday"))
    tile = browser_page.locator(".tile", has_text="Cost")
    expect(tile).to_contain_text(f"EUR\u00a0{seeded['yesterday']:.2f}")
    table = browser_page.get_by_role("region", name="Usage by model")
    expect(table.get_by_role("link", name="usage/solver")).to_be_visible()
    expect(table.get_by_role("link", name="usage/judge")).to_be_visible()
    expect(browser_page.get_by_role("img", name="Cost in EUR, by the hour")).to_be_visible()


def test_who_used_it_with_names_that_stay_text(browser_page, served, clicks):
    browser_page.goto(f"{served.url}/#/usage")
    clicks(browser_page.get_by_role("button", name="Key", exact=True))
    table = browser_page.get_by_role("region", name="Usage by key")
    expect(table).to_contain_text(HOSTILE)
    with browser_page.expect_download() as waited:
        clicks(browser_page.get_by_role("button", name="Download CSV"))
    rows = list(csv.DictReader(waited.value.path().open()))
    assert {row["key_name"] for row in rows} >= {"train key", f"'{HOSTILE}"}


def test_where_the_time_of_a_job_went(browser_page, served, seeded, clicks):
    browser_page.goto(f"{served.url}/#/usage")
    clicks(browser_page.get_by_role("button", name="Job", exact=True))
    clicks(browser_page.get_by_role("link", name=seeded["job"][:8]))
    table = browser_page.get_by_role("region", name="Phases of the job")
    steps = table.get_by_role("row").filter(has_text="Gradient steps")
    expect(steps).to_contain_text("1 min 39 s")
    expect(steps).to_contain_text("240K trained")
    expect(table.get_by_role("row").filter(has_text="Lost process")).to_contain_text(re.compile(r"1 min 2 s"))
    expect(browser_page.get_by_label("Where the time of the job went")).to_contain_text("100 % accounted for")
    expect(browser_page.locator(".stretch-bar > span[title*='the process of attempt 1 ended']")).to_have_count(1)
    clicks(steps.get_by_role("button"))
    expect(browser_page.locator(".stretch-bar > .marked")).to_have_count(2)


def test_whether_the_learner_waits_for_rollouts(browser_page, served, clicks):
    clicks(browser_page.get_by_role("link", name="Usage", exact=True))
    clicks(browser_page.get_by_role("button", name="15 min"))
    bar = browser_page.get_by_label("Who waited for whom")
    expect(bar.get_by_text(re.compile(r"the learner waited for rollouts \d+ %"))).to_be_visible()
    expect(bar.get_by_role("listitem").filter(has_text="Rollouts run, learner waits")).to_be_visible()


def test_a_key_of_another_role_is_told_why_it_sees_no_bill(open_page, watch):
    page = open_page("#/usage", role="infer")
    expect(page.get_by_role("link", name="Usage", exact=True)).to_have_count(0)
    expect(page.locator("main")).to_contain_text("train")


def test_a_time_without_usage_says_what_to_do(browser_page, served):
    browser_page.goto(f"{served.url}/#/usage?from=2001-01-01&to=2001-01-02")
    expect(browser_page.get_by_text("Nothing was used in this time")).to_be_visible()
