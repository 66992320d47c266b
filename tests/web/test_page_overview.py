"""The overview: every model with its curve, state and last error."""

import re

from playwright.sync_api import expect
from seeding import BASE

from tandem.serve.keys import create_key


def test_find_the_model_that_failed_and_open_its_job(served, open_page, clicks):
    page = open_page()
    row = page.get_by_role("row").filter(has_text="overview/agent-1")
    expect(row).to_contain_text("ran out of memory")
    clicks(row.get_by_role("link", name="ran out of memory"))
    expect(page).to_have_url(re.compile(f"#/jobs/{served.seeded['overview']['failed']}"))


def test_a_row_has_curve_version_and_state(served, open_page):
    page = open_page()
    row = page.get_by_role("row").filter(has_text="overview/agent-0")
    expect(row.get_by_role("img", name=re.compile("reward: from .* to "))).to_be_visible()
    expect(row.get_by_role("cell").nth(4)).to_have_text("12")
    expect(row).to_contain_text("queued")


def test_models_are_searched_and_compared(served, open_page, clicks):
    page = open_page()
    page.get_by_role("searchbox").fill("AGENT-0")
    expect(page.get_by_role("row").filter(has_text="overview/agent-1")).to_have_count(0)
    page.get_by_role("searchbox").fill("overview/")
    for number in (0, 1):
        clicks(page.get_by_label(f"Compare overview/agent-{number}"))
    clicks(page.get_by_role("link", name="Compare 2 models"))
    ids = [served.seeded["overview"]["models"][number]["id"] for number in (0, 1)]
    expect(page).to_have_url(re.compile("#/compare"))
    assert all(id in page.url for id in ids)


def test_hundreds_of_models_are_loaded_page_by_page_and_few_are_rendered(served, open_page):
    served.keys["many"] = create_key(served.store, "k", "many", "train")
    for number in range(120):
        served.store.models.add("many", "many", f"agent-{number:03}", BASE, return_existing=False)
    page = open_page(role="many")
    expect(page.get_by_role("link", name="many/agent-119", exact=True)).to_be_visible()
    box = page.get_by_role("region", name="Models")
    expect(box.get_by_text("Loading more…")).to_be_attached()
    for _ in range(20):
        box.evaluate("box => box.scrollTo(0, box.scrollHeight)")
        page.wait_for_timeout(100)
        if page.get_by_role("link", name="many/agent-000", exact=True).count():
            break
    expect(page.get_by_role("link", name="many/agent-000", exact=True)).to_be_visible()
    assert page.locator("tbody tr").count() < 60


def test_a_key_that_may_only_sample_sees_names_and_versions(open_page):
    page = open_page(role="infer")
    row = page.get_by_role("row").filter(has_text="overview/agent-0")
    expect(row).to_contain_text("12")
    assert page.get_by_text("ran out of memory").count() == 0
