"""A model that a client of the Tinker API trains, in a real browser."""

from playwright.sync_api import expect


def test_the_state_of_a_run_and_its_versions_are_shown(served, open_page):
    run = served.seeded["clients"]["run"]
    page = open_page(f"#/models/{run.model_id}")
    card = page.get_by_label("Training client")
    expect(card).to_contain_text(run.id)
    expect(card).to_contain_text("waiting")
    expect(card).to_contain_text("2 done, 1 waiting; last optim_step 2")
    expect(card).to_contain_text("2 jobs before it")
    expect(card).to_contain_text("No gradient <img src=x onerror=alert(1)>")
    page.get_by_role("link", name="Versions", exact=True).click()
    page.get_by_role("button", name="Version 1").click()
    panel = page.get_by_label("Version 1", exact=True)
    expect(panel).to_contain_text("a client of the Tinker API")
    expect(panel).to_contain_text("first")
