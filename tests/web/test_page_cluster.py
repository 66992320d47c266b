"""Engines and learners, in a real browser."""

import pytest
from cluster_views import BASE, engines, replica
from playwright.sync_api import expect


@pytest.fixture
def view(served):
    """The state that the service finds, put back after the test."""
    view = served.services.cluster
    before = view.found_engines
    yield view
    view.found_engines = before


def test_which_engine_is_unhealthy_and_why(open_page, clicks):
    page = open_page(role="admin")
    clicks(page.get_by_role("link", name="Cluster", exact=True))
    alarms = page.get_by_label("Alarms")
    expect(alarms).to_contain_text("Engine silent2: It doesn't answer.")
    expect(alarms).to_contain_text("Engine dead3: The vLLM engine core died. <img src=x onerror=alert(1)>")
    expect(page.get_by_label("Engine dead3").get_by_text("unhealthy")).to_be_visible()
    expect(page.get_by_label("Engines that ended").get_by_role("listitem").first).to_contain_text("Out of memory")
    assert page.locator("main img").count() == 0


def test_how_full_are_the_adapter_slots(served, open_page, clicks):
    page = open_page()
    clicks(page.get_by_role("link", name="Cluster", exact=True))
    card = page.get_by_label("Engine works1")
    expect(card.get_by_role("meter", name="Adapter slots")).to_have_attribute("aria-valuenow", "75")
    expect(card).to_contain_text("3 of 4 in the batch")
    expect(card).to_contain_text("4 of 16")
    # Own versions are links, those of others a number.
    link = card.get_by_role("link", name="cluster/agent v2")
    expect(link).to_have_attribute("href", f"#/models/{served.seeded['cluster']['model']['id']}/versions")
    expect(card).to_contain_text("and 2 of others")


def test_a_tenant_reads_no_error_in_the_words_of_the_process(open_page):
    page = open_page("#/cluster")
    expect(page.get_by_label("Engine dead3")).to_contain_text("Its vLLM core has died.")
    expect(page.locator("main")).not_to_contain_text("onerror")


def test_learners_their_speed_and_publications(open_page):
    card = open_page("#/cluster").get_by_label(f"Learners of {BASE}")
    expect(card).to_contain_text("6.2K tokens/s, 22 % MFU")
    expect(card).to_contain_text("It doesn't answer now.")
    expect(card).to_contain_text("half within 0.5 s, 95 % within 2.5 s")


def test_changes_appear_by_themselves(open_page, view):
    page = open_page("#/cluster")
    expect(page.get_by_label("Alarms")).to_be_visible()
    view.found_engines = {BASE: engines(replica("new6"))}
    expect(page.get_by_label("Engine new6").get_by_text("running", exact=True)).to_be_visible()
    expect(page.get_by_label("Alarms")).to_have_count(0)


def test_it_fits_a_phone(open_page):
    page = open_page("#/cluster", width=390, height=800)
    expect(page.get_by_label("Engine works1")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_service_without_ray_says_so(open_page, served, watch, monkeypatch):
    watch.allow("status of 503")
    monkeypatch.setattr(served.services.cluster, "engines", _fails)
    page = open_page("#/cluster")
    expect(page.get_by_role("alert")).to_contain_text("code metrics_unavailable")


async def _fails():
    from tandem.serve.errors import UnavailableError

    raise UnavailableError("The cluster doesn't answer.", "metrics_unavailable")
