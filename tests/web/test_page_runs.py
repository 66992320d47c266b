"""Curves, comparisons and jobs in a real browser."""

import re

import pytest
from playwright.sync_api import expect
from seeding_runs import _job, _model, add_versions


@pytest.fixture
def runs(served):
    return served.seeded["runs"]


def test_which_of_two_models_learns_faster(served, runs, open_page, clicks):
    page = open_page(f"#/models/{runs['fast']}")
    expect(page.get_by_role("heading", name="runs/fast")).to_be_visible()
    clicks(page.get_by_role("button", name="Compare with…"))
    page.get_by_label("Compare with").select_option(label="runs/slow")
    expect(page.get_by_text(re.compile("runs/fast learns faster"))).to_be_visible()
    expect(page.locator("figure.chart canvas").first).to_be_visible()
    expect(page.locator("figure.chart").first).to_contain_text("runs/slow")


def test_what_a_job_waits_for(served, runs, open_page, clicks):
    page = open_page("#/jobs?state=queued")
    clicks(page.get_by_role("link", name=runs["waiting"][1][:8]))
    waiting = page.get_by_label("What the job waits for")
    expect(waiting).to_contain_text("Place")
    expect(waiting).to_contain_text(runs["running"])
    expect(waiting.get_by_role("link", name=runs["waiting"][0][:8])).to_be_visible()


def test_why_a_job_failed_and_what_to_do(served, runs, open_page, clicks):
    page = open_page("#/jobs?state=failed")
    clicks(page.get_by_role("link", name=runs["failed"][:8]))
    alert = page.get_by_role("alert", name="Why the job failed")
    expect(alert).to_contain_text("step")
    expect(alert).to_contain_text("is not finite")
    expect(alert).to_contain_text("What to do")
    expect(page.get_by_text("the same reward as all others of the group")).to_be_visible()
    above = page.evaluate(
        "document.querySelector('.error-box').compareDocumentPosition(document.querySelector('#steps')) & 4"
    )
    assert above, "errors come first"


def test_a_job_is_cancelled(served, open_page, clicks):
    model = _model(served, "cancelled")
    job = _job(served, model, "queued")
    page = open_page(f"#/jobs/{job}")
    clicks(page.get_by_role("button", name="Cancel job…"))
    clicks(page.get_by_role("dialog").get_by_role("button", name="Cancel the job"))
    expect(page.locator("h1")).to_contain_text("cancelled")
    assert served.store.jobs.get(job, "team").state == "cancelled"


def test_a_point_leads_to_the_groups_of_its_version(runs, open_page, watch, clicks):
    watch.allow("status of 404")  # these versions have no trajectories
    page = open_page(f"#/models/{runs['fast']}")
    clicks(page.locator("figure.chart .u-over").first)
    expect(page).to_have_url(re.compile(rf"#/models/{runs['fast']}/groups\?step=\d+"))


def test_curves_of_two_thousand_versions(runs, open_page):
    page = open_page(f"#/models/{runs['long']}?smooth=0.9&axis=time")
    expect(page.get_by_text(re.compile("Each point stands for up to 5 versions"))).to_be_visible()
    chart = page.locator("figure.chart").first
    chart.get_by_text("Values", exact=True).click()
    expect(chart.get_by_role("columnheader", name="evaluation: val")).to_be_visible()
    expect(page.get_by_role("button", name="Time", exact=True)).to_have_attribute("aria-pressed", "true")


def test_views_follow_the_service_live(served, open_page):
    model = _model(served, "live")
    page = open_page(f"#/models/{model}")
    expect(page.get_by_text("This model has no versions yet")).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="live")).to_be_visible()
    add_versions(served.store, model, 2, 0.1, seed=4)
    expect(page.get_by_role("link", name="Groups of version 2")).to_be_visible()


def test_a_stream_that_breaks_is_opened_again_and_misses_nothing(served, open_page, watch):
    watch.allow("ERR_FAILED")
    model = _model(served, "broken")
    page = open_page(f"#/jobs?model={model}")
    mark = page.get_by_role("status").filter(has_text="live")
    expect(mark).to_be_visible()
    page.route("**/v1/preview/changes", lambda route: route.abort())
    for viewer in served.services.change_feed.viewers:
        viewer.ended = "The test ends the stream."
    _model(served, "wakes the viewers")
    expect(page.get_by_role("status").filter(has_text="reconnecting")).to_be_visible()
    job = _job(served, model, "queued")
    page.unroute("**/v1/preview/changes")
    expect(page.get_by_role("link", name=job[:8])).to_be_visible()
    expect(mark).to_be_visible()
