"""A trajectory token by token, and a group side by side, in a real browser."""

import re

import pytest
from token_seeding import HOSTILE, NUM_LONG, STEP


@pytest.fixture
def seeded(served):
    return served.seeded["tokens"]


def tokens_of(served, id):
    return served.http("train").get(f"/v1/preview/trajectories/{id}/tokens").json()


def test_the_largest_mismatch_of_a_trajectory_is_one_click_away(served, seeded, open_page, clicks):
    found = tokens_of(served, f"{seeded['job']}.0.0")
    mismatch = found["notable"]["mismatch"][0]
    assert mismatch["value"] > 5  # the sampler's logprob was -30
    page = open_page(f"#/trajectories/{seeded['job']}.0.0")
    first = page.get_by_role("region", name="Largest mismatches").get_by_role("button").first
    clicks(first)
    token = page.locator(f"#token-{mismatch['token']}")
    assert token.get_attribute("aria-selected") == "true"
    numbers = page.locator(".token-numbers")
    assert f"Token {mismatch['token']}" in numbers.inner_text()
    assert re.search(r"Sampler's logprob\s+−30", numbers.inner_text())
    page.wait_for_url(f"**token={mismatch['token']}")


def test_a_trajectory_that_trained_nothing_says_why(served, seeded, open_page):
    page = open_page(f"#/trajectories/{seeded['job']}.1.0")
    page.get_by_text("not trained", exact=True).wait_for()
    assert page.get_by_text("the same reward as all others of the group, up to rounding").is_visible()
    assert page.locator(".token").count() > 10  # the tokens of its choices
    assert page.get_by_role("link", name="Advantage").count() == 0


def test_a_permalink_opens_at_its_token_also_far_into_a_long_trajectory(served, seeded, open_page):
    page = open_page(f"#/trajectories/{seeded['long']}.0.0?color=difference&token=99700")
    token = page.locator("#token-99700")
    token.wait_for()
    page.wait_for_function(
        """() => { const box = document.querySelector(".tokens").getBoundingClientRect();
        const token = document.querySelector("#token-99700").getBoundingClientRect();
        return token.top >= box.top && token.bottom <= box.bottom; }"""
    )
    assert token.get_attribute("aria-selected") == "true"
    assert page.locator(".token").count() < 10_000  # of 100,000: only what is near the part in sight
    assert "100,000" in page.get_by_role("heading", name="Tokens").inner_text()
    page.locator(".tokens").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#token-99699").get_attribute("aria-selected") == "true"
    page.keyboard.press("Home")
    page.locator("#token-0").wait_for()
    page.keyboard.press("End")
    page.locator(f"#token-{NUM_LONG - 1}").wait_for()
    page.keyboard.press("ArrowUp")
    assert page.locator("[aria-selected=true]").count() == 1
    copied = page.get_by_role("button", name="Copy link to token")
    assert copied.is_visible()


def test_overlays_colour_tokens_and_say_their_scale(served, seeded, open_page):
    page = open_page(f"#/trajectories/{seeded['job']}.0.0?color=advantage")
    found = tokens_of(served, f"{seeded['job']}.0.0")
    trained, context = found["tokens"]["mask"].index(True), 0
    page.locator(f"#token-{trained}").wait_for()

    def colour(token):
        return page.locator(f"#token-{token}").evaluate("one => getComputedStyle(one).backgroundColor")

    seen = {}
    for name in ("Advantage", "Logprob", "Learner − sampler", "Ratio", "Mask", "Version"):
        page.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("link", name=name, exact=True).and_(page.locator("[aria-current=page]")).wait_for()
        seen[name] = colour(trained)
        assert page.get_by_role("list", name="Scale").get_by_role("listitem").count() >= 1
    assert all("rgba(0, 0, 0, 0)" != one for name, one in seen.items() if name not in ("Learner − sampler", "Ratio"))
    page.get_by_role("link", name="Mask", exact=True).click()
    assert colour(context) == "rgba(0, 0, 0, 0)"
    page.get_by_role("link", name="Plain", exact=True).click()
    page.get_by_role("link", name="Plain", exact=True).and_(page.locator("[aria-current=page]")).wait_for()
    assert colour(trained) == "rgba(0, 0, 0, 0)"


def test_from_the_list_of_groups_of_a_version_to_why_one_is_worst(served, seeded, open_page, clicks):
    """Which group of version 12 was worst, and why."""
    found = served.http("train").get(f"/v1/preview/models/{seeded['model']['id']}/groups", params={"step": STEP}).json()
    assert (found["job_id"], found["data"][0]["group"]) == (seeded["job"], 2)  # the worst first
    page = open_page(f"#/models/{seeded['model']['id']}/groups?step={STEP}")
    clicks(page.get_by_role("link", name="Group 2", exact=True))
    box = page.get_by_role("region", name="Best and worst")
    box.wait_for()
    page.get_by_text("All begin with the same 4 turns").wait_for()  # both are loaded
    text = box.inner_text()
    assert "What tells trajectory 1 (worst) from 0 (best)" in text
    assert re.search(r"Reward\s+0.25\s+−1", text) and re.search(r"refused\s+–\s+1", text)
    columns = page.get_by_role("region", name="Trajectories side by side")
    assert [one.inner_text() for one in columns.get_by_role("heading").all()] == ["Trajectory 0", "Trajectory 1"]


def test_texts_of_others_stay_text(served, seeded, open_page):
    page = open_page(f"#/trajectories/{seeded['job']}.0.1")
    page.get_by_text("<img src=x onerror=alert(1)>").first.wait_for()
    assert page.locator("main img, main script").count() == 0
    assert page.locator(".hidden-character", has_text="U+202E").count() >= 1
    assert "\u202e" not in page.locator("main").inner_text() and HOSTILE
    hostile = open_page(f"#/trajectories/{seeded['job']}.2.1")
    hostile.locator(".token").first.wait_for()
    assert hostile.locator("main img, main script").count() == 0


def test_tokens_show_whitespace_and_bytes_and_the_view_fits_a_phone(served, seeded, open_page):
    page = open_page(f"#/trajectories/{seeded['job']}.0.0", width=390)
    page.locator(".token").first.wait_for()
    text = page.locator(".tokens").inner_text()
    assert "\\xE2" in text and "↵" in text and "·" in text
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.goto(f"{served.url}/#/jobs/{seeded['job']}/groups/0")
    page.get_by_role("region", name="Trajectories side by side").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
