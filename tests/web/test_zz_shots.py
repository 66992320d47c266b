import pytest
from playwright.sync_api import expect


@pytest.mark.parametrize(
    ("name", "opts"), [("light", {}), ("dark", {"dark": True}), ("phone", {"width": 390, "height": 800})]
)
def test_shot(open_page, name, opts):
    page = open_page("#/cluster", role="admin", **opts)
    expect(page.get_by_label("Engine works1")).to_be_visible()
    page.get_by_text("Settings and memory plan").click()
    page.wait_for_timeout(400)
    page.screenshot(path=f"/tmp/home-metrics/shot_{name}.png", full_page=True)
