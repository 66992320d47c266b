"""The view of alerts: is anything wrong right now, and what should I do; acknowledge one."""

import uuid

import pytest
from playwright.sync_api import expect

from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.store import AlertStore


def cards(page):
    return page.locator("li.alert")


def test_is_anything_wrong_right_now_and_what_should_i_do(open_page, clicks, served):
    page = open_page()
    link = page.get_by_role("navigation").get_by_role("link", name="Alerts")
    expect(link.locator(".badge")).to_be_visible()
    clicks(link)
    collapse = cards(page).filter(has_text="has collapsed")
    expect(collapse).to_contain_text("it was 0.74")
    expect(collapse).to_contain_text("What to do: Look at the groups of version 40.")
    model = served.seeded["alerts"]["model"]
    groups = collapse.get_by_role("link", name="Groups of version 40")
    expect(groups).to_have_attribute("href", f"#/models/{model}/groups?step=40")
    expect(collapse.get_by_role("link", name="Model", exact=True)).to_have_attribute("href", f"#/models/{model}")
    assert cards(page).filter(has_text="engine").count() == 0, "alerts of the service are for admins"
    expect(page.get_by_text("The last 3 jobs have failed.")).to_have_count(0)
    clicks(page.get_by_label("Also show alerts that are over"))
    expect(page.get_by_text("The last 3 jobs have failed.")).to_be_visible()


def test_html_and_hidden_characters_in_an_alert_stay_text(open_page, served):
    page = open_page(f"#/alerts?job={served.seeded['alerts']['job']}")
    expect(cards(page)).to_have_count(1)
    expect(cards(page)).to_contain_text("<img src=x onerror=alert(1)>")
    expect(cards(page)).to_contain_text("U+202E")
    assert page.locator("main img").count() == 0


def test_acknowledge_an_alert(open_page, clicks, served):
    subject = uuid.uuid4().hex
    found = Finding("failed_jobs", subject, f"Jobs of {subject} failed", "They failed.", "Read why.", "team")
    AlertStore(served.store.database).open([found], [])
    page = open_page()
    badge = page.get_by_role("navigation").get_by_role("link", name="Alerts").locator(".badge")
    before = int(badge.inner_text().split("(")[-1].split()[0])
    clicks(page.get_by_role("navigation").get_by_role("link", name="Alerts"))
    clicks(page.get_by_role("button", name=f"Acknowledge: Jobs of {subject} failed"))
    card = cards(page).filter(has_text=subject)
    expect(card).to_contain_text("acknowledged")
    expect(card.get_by_role("button")).to_have_count(0)
    expect(badge).to_contain_text(str(before - 1))


def test_admins_see_the_service_and_how_messages_fared(open_page, watch):
    page = open_page("#/alerts", role="admin")
    engine = cards(page).filter(has_text="isn't healthy")
    expect(engine).to_contain_text("of the whole service")
    engine.get_by_text("Messages to webhooks").click()
    expect(engine).to_contain_text("opened to hooks.example.com: pending")
    watch.allow("status of 409")
    page.get_by_role("button", name="Send a test message").click()
    expect(page.get_by_role("alert")).to_contain_text("no webhook")


def test_without_alerts_the_view_says_so(open_page):
    page = open_page(f"#/alerts?model={uuid.uuid4()}")
    expect(page.get_by_text("Nothing is wrong")).to_be_visible()


def test_a_key_that_only_samples_asks_for_no_alerts(open_page):
    page = open_page(role="infer")
    expect(page.get_by_role("heading", level=1)).to_be_visible()
    assert page.get_by_role("link", name="Alerts").count() == 0


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_the_view_fits_the_screen(open_page, width, dark, tmp_path):
    page = open_page("#/alerts", role="admin", width=width, dark=dark)
    expect(cards(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
