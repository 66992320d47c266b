"""Find trajectories and groups, in a real browser."""

import re

from playwright.sync_api import expect


def table(page, label):
    return page.get_by_role("region", name=label)


def test_a_text_with_a_low_reward_is_found(served, open_page, clicks, watch):
    watch.allow("status of 4(09|10)")  # the job of the seed was never run, so it has no traces
    page = open_page("#/")
    clicks(page.get_by_role("link", name="Find", exact=True))
    page.get_by_label("Text").fill("needle")
    page.get_by_label("Reward to").fill("0.2")
    clicks(page.get_by_role("button", name="Find", exact=True))
    rows = table(page, "Trajectories").locator("tbody tr")
    expect(page.get_by_text(re.compile(r"1 found, searched \d+ of \d+"))).to_be_visible()
    expect(rows).to_have_count(1)
    expect(rows.locator("mark")).to_have_text("needle")
    expect(rows).to_contain_text("the needle <b>in</b> the haystack")
    assert "text=needle" in page.url and "reward_max=0.2" in page.url
    clicks(rows.get_by_role("link").first)
    assert f"/trajectories/{served.seeded['find']['job']}.3.5" in page.url


def test_the_address_is_the_search(open_page):
    page = open_page("#/trajectories?text=NEEDLE&metadata=task%3D9")
    expect(page.get_by_label("Metadata")).to_have_value("task=9")
    expect(page.get_by_text(re.compile("0 found, searched"))).to_be_visible()  # the one of group 9 has no metadata
    expect(page.get_by_text("Nothing matches")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_label("Text")).to_have_value("")
    expect(table(page, "Trajectories")).to_be_visible()


def test_the_evaluations_of_a_version_that_failed_are_listed(open_page, clicks):
    page = open_page("#/")
    clicks(page.get_by_role("link", name="Find", exact=True))
    page.get_by_label("Version").fill("5")
    page.get_by_label("Split").fill("eval")
    clicks(page.get_by_label("Errors only"))
    clicks(page.get_by_role("button", name="Find", exact=True))
    rows = table(page, "Trajectories").locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.first).to_contain_text("TimeoutError: took longer than 30 s")
    expect(rows.first).to_contain_text("failed")


def test_the_worst_group_of_a_version_comes_first(served, open_page, clicks, watch):
    watch.allow("status of 4(09|10)")
    model, job = served.seeded["find"]["model"], served.seeded["find"]["job"]
    page = open_page(f"#/models/{model['id']}/groups?step=12")
    rows = table(page, "Groups").locator("tbody tr:not(.space)")
    expect(rows.first).to_contain_text("Group 17")
    expect(rows.first.locator(".bar")).to_have_count(8)
    expect(rows.first).to_contain_text("\N{MINUS SIGN}1.15")
    clicks(page.get_by_label("Order").locator("xpath=self::select"))
    page.get_by_label("Order").select_option("best")
    expect(rows.first).to_contain_text("Group 20")
    expect(rows.first).to_contain_text("equal rewards")
    page.get_by_label("Order").select_option("worst")
    clicks(rows.first.get_by_role("link", name="Group 17"))
    assert page.url.endswith(f"#/jobs/{job}/groups/17")


def test_many_trajectories_are_in_the_page_only_where_they_are_seen(open_page):
    page = open_page("#/trajectories?model=find%2Fagent")
    box = table(page, "Trajectories")
    expect(page.get_by_text("330 trajectories")).to_be_visible()
    last = box.locator("tbody tr").filter(has_text="group 39, trajectory 7")
    for _ in range(50):
        box.evaluate("box => box.scrollTo(0, box.scrollHeight)")
        if last.count():
            break
        page.wait_for_timeout(50)
    expect(last).to_be_visible()
    assert last.get_attribute("aria-rowindex") == "331"
    assert box.locator("tbody tr").count() < 80


def test_a_condition_that_cannot_be_read_says_how_to_write_it(open_page, watch):
    page = open_page("#/trajectories")
    page.get_by_label("Metrics").fill("length")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("length<=100")
    watch.allow("status of 404")
    page.get_by_label("Metrics").fill("")
    page.get_by_label("Model").fill("no/such")
    page.get_by_role("button", name="Find", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("model_not_found")


def test_the_views_fit_a_phone(served, open_page):
    model = served.seeded["find"]["model"]
    for address in ("#/trajectories?text=needle", f"#/models/{model['id']}/groups?step=12"):
        page = open_page(address, width=390, dark=True)
        expect(page.locator("tbody tr").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
