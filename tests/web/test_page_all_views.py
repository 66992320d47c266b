"""Every view: accessible by the rules of axe in light and dark, usable by keyboard, and no wider than a phone."""

from paths import ROOT
from playwright.sync_api import expect
from views import CHANGES, QUIET, route_paths, show, views

AXE = ROOT / "serve/web/node_modules/axe-core/axe.min.js"
RULES = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
CONTRAST = {"runOnly": {"type": "rule", "values": ["color-contrast"]}}
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 800}
KEYLESS = """() => [...document.querySelectorAll("main :is(a, button, summary, input, select, textarea)")]
    .filter(element => element.checkVisibility() && !element.disabled && element.tabIndex < 0)
    .filter(element => !element.closest("tr")?.querySelector("a:not([tabindex])"))  // that leads there, too
    .map(element => element.outerHTML.slice(0, 120))"""


def faults(page, rules):
    """Return what axe finds wrong: the rule, the element, and why."""
    found = page.evaluate("rules => window.axe.run(document, rules)", rules)["violations"]
    nodes = [(rule["id"], node) for rule in found for node in rule["nodes"]]
    return [f"{rule}: {node['html'][:160]}: {node['failureSummary'][:240]}" for rule, node in nodes]


def test_each_route_is_among_the_views_that_are_tested(served):
    missing = "tests/web/views.py needs an address and a picture for each route of routes.ts"
    assert sorted(views(served)) == sorted(route_paths()), missing


def test_every_view_is_accessible_and_fits_a_phone(served, open_page):
    """One walk through the views: accessible in light, legible in dark, all of it by keyboard, and no wider than a
    phone. Of axe's rules, only that for contrast depends on the colors."""
    page = open_page("#/start", role="admin")
    page.evaluate(AXE.read_text())  # as a developer's console does: the policy holds for the page, not for it
    found = {}
    for route, address in views(served).items():
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(DESK)
        show(page, served, address)
        wrong = [*faults(page, RULES), *(f"no key leads to {element}" for element in page.evaluate(KEYLESS))]
        page.emulate_media(color_scheme="dark")
        wrong += [f"dark: {fault}" for fault in faults(page, CONTRAST)]
        page.set_viewport_size(PHONE)
        page.evaluate(QUIET, CHANGES)
        if (width := page.evaluate("document.documentElement.scrollWidth")) > PHONE["width"]:
            wrong.append(f"{width} pixels wide on a phone")
        if wrong:
            found[route] = wrong
    assert found == {}


def test_a_walk_by_keyboard_alone(served, open_page):
    """Skip to the content, go to a view by its shortcut, read the list of shortcuts, and open a model."""
    page = open_page("#/start", role="admin")
    expect(page.get_by_role("heading", name="Start")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.type("?")
    expect(page.get_by_role("dialog")).to_contain_text("Go to Overview")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.type("go")
    expect(page.get_by_role("heading", name="Models")).to_be_visible()
    other = page.get_by_role("row").filter(has_text="overview/agent-1")
    expect(other.first).to_be_visible()
    page.get_by_role("searchbox").focus()
    page.keyboard.type("overview/agent-0")
    expect(other).to_have_count(0)
    for _ in range(6):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "overview/agent-0":
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus is visible"
    page.keyboard.press("Enter")
    model = served.seeded["overview"]["models"][0]["id"]
    page.wait_for_url(f"**/#/models/{model}*")


def test_the_page_is_small(page_files):
    """All of it, as a browser that accepts gzip gets it. The API's reference is loaded only there."""
    files = [file for file in (page_files / "assets").glob("*.gz") if not file.name.startswith("reference")]
    assert {file.suffixes[-2] for file in files} == {".js", ".css", ".svg"}
    assert sum(file.stat().st_size for file in files) < 300_000
