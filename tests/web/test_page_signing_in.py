"""Sign-in, sign-out, and roles, in a real browser."""

import re

from playwright.sync_api import expect


def test_a_key_signs_in_and_out(served, open_page, watch):
    page = open_page(role=None)
    page.get_by_label("API key").fill(f" {served.keys['train']} ")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    header = page.locator("header.top")
    expect(header).to_contain_text("team")
    expect(header).to_contain_text("train")
    assert served.keys["train"] not in page.url
    page.reload()
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    page.get_by_text("Account", exact=True).first.click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("API key")).to_be_visible()
    assert served.keys["train"] not in page.evaluate("JSON.stringify({...localStorage})")


def test_a_wrong_key_is_refused_with_the_services_words(open_page, watch):
    watch.allow("status of 401")
    page = open_page(role=None)
    page.get_by_label("API key").fill("tdm_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("isn't valid")
    expect(page.get_by_role("alert")).to_contain_text(re.compile("code invalid_api_key"))


def test_the_models_are_listed(served, browser_page):
    for model in served.seeded["overview"]["models"]:
        expect(browser_page.get_by_role("link", name=f"overview/{model['name']}", exact=True)).to_be_visible()
