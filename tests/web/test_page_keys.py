"""The view of keys: give a colleague a key that may only sample, then revoke it."""

import httpx
import pytest
from playwright.sync_api import expect

HOSTILE = "<img src=x onerror=alert(1)> \u202egnp.exe"


def ask(served, key, path="/v1/models"):
    return httpx.get(f"{served.url}{path}", headers={"authorization": f"Bearer {key}"})


def test_give_a_colleague_a_key_that_may_only_sample_then_revoke_it(served, open_page, clicks):
    page = open_page("#/keys", role="admin")
    page.get_by_role("textbox", name="Name").fill("a colleague")
    clicks(page.get_by_role("button", name="Create key"))
    key = page.locator(".secret code.key").inner_text()
    assert ask(served, key).status_code == 200
    assert ask(served, key, "/v1/preview/training-jobs").status_code == 403
    clicks(page.get_by_role("button", name="Revoke a colleague"))
    clicks(page.get_by_role("button", name="Revoke the key"))
    expect(page.get_by_role("button", name="Revoke a colleague")).to_have_count(0)
    assert ask(served, key).status_code == 401


def test_a_name_that_is_html_stays_text(served, open_page):
    page = open_page("#/keys", role="admin")
    page.get_by_role("textbox", name="Name").fill(HOSTILE)
    page.get_by_role("radio", name="train").check()
    page.keyboard.press("Enter")
    expect(page.locator(".secret")).to_contain_text("<img src=x onerror=alert(1)>")
    row = page.get_by_role("row").filter(has_text="onerror", has_not_text="=2+3")  # that of another key
    expect(row).to_contain_text("U+202E")
    expect(row).to_contain_text("train")
    assert page.locator("img").count() == 0
    page.get_by_role("button", name="I have copied it").click()
    expect(page.locator(".secret")).to_have_count(0)


def test_an_error_of_the_service_is_shown(open_page, watch):
    watch.allow("status of 422")
    page = open_page("#/keys", role="admin")
    page.get_by_role("textbox", name="Name").fill("bell \u0085")
    page.get_by_role("button", name="Create key").click()
    expect(page.get_by_role("alert")).to_contain_text("422")


@pytest.mark.parametrize("role", ["infer", "train"])
def test_other_roles_are_told_which_key_they_need(open_page, role):
    page = open_page("#/keys", role=role)
    expect(page.get_by_role("main")).to_contain_text("needs a key with role admin")
    assert page.get_by_role("link", name="Keys").count() == 0
