"""Every view with its picture in the documentation, and an address with data to show, for the tests of all views."""

import re

from paths import ROOT
from playwright.sync_api import expect

ROUTES = ROOT / "serve" / "web" / "src" / "app" / "routes.ts"
PICTURES = {
    "/": "overview",
    "/alerts": "alerts",
    "/cluster": "cluster",
    "/compare": "compare",
    "/jobs": "jobs",
    "/jobs/:id": "job",
    "/models/:id": "model",
    "/usage": "usage",
    "/usage/jobs/:id": "usage-job",
    "/configurations": "configurations",
    "/configurations/:id": "configuration",
    "/fine-tuning": "fine-tuning",
    "/fine-tuning/:id": "fine-tuning-job",
    "/keys": "keys",
    "/models/:id/settings": "settings",
    "/models/:id/versions": "versions",
    "/playground": "playground",
    "/start": "start",
    "/user-jobs/:id": "user-job",
    "/jobs/:id/groups/:group": "group",
    "/models/:id/groups": "groups",
    "/trajectories": "find",
    "/trajectories/:id": "trajectory",
}
"""docs/images/page has these, by the route of the view."""
CHANGES = "/v1/preview/changes"  # a stream, which doesn't end
# Wait until no request has been sent for a moment and all that were sent are answered.
QUIET = """async changes => {
    const sent = () => performance.getEntriesByType("resource").filter(entry => !entry.name.includes(changes)).length;
    for (let before = -1, calm = 0; calm < 3; ) {
        const now = sent();
        calm = now === before ? calm + 1 : 0;
        before = now;
        await new Promise(resolve => setTimeout(resolve, 70));
    }
}"""


def route_paths():
    """Return the paths of all routes, as routes.ts has them."""
    return re.findall(r'^    path: "([^"]+)"', ROUTES.read_text(), re.M)


def views(served):
    """Return the address of each view by its route. An admin's key sees them all."""
    seeded = served.seeded
    versions, tokens, runs = seeded["versions"], seeded["tokens"], seeded["runs"]
    return {
        "/": "#/",
        "/alerts": "#/alerts",
        "/cluster": "#/cluster",
        "/compare": f"#/compare?models={runs['fast']},{runs['slow']}",
        "/configurations": "#/configurations",
        "/configurations/:id": "#/configurations/versions-nightly",
        "/fine-tuning": "#/fine-tuning",
        "/fine-tuning/:id": f"#/fine-tuning/{versions['tuning'][1]['id']}",
        "/jobs": "#/jobs",
        "/jobs/:id": f"#/jobs/{runs['failed']}",
        "/keys": "#/keys",
        "/models/:id": f"#/models/{runs['fast']}",
        "/models/:id/settings": f"#/models/{versions['model'].id}/settings",
        "/models/:id/versions": f"#/models/{versions['model'].id}/versions",
        "/playground": "#/playground?a=team/versions/agent:step1&b=tandem/tiny",
        "/start": "#/start?client=tandem",
        "/jobs/:id/groups/:group": f"#/jobs/{tokens['job']}/groups/1",
        "/models/:id/groups": f"#/models/{seeded['find']['model']['id']}/groups?step=12",
        "/trajectories": "#/trajectories?model=find%2Fagent",
        "/trajectories/:id": f"#/trajectories/{tokens['job']}.0.0?color=advantage&token=12",
        "/usage": "#/usage",
        "/usage/jobs/:id": f"#/usage/jobs/{seeded['usage']['job']}",
        "/user-jobs/:id": f"#/user-jobs/{versions['jobs']['versions-first'][0]}",
    }


def show(page, served, address):
    """Go to a view, and wait for its heading and its data."""
    page.goto(f"{served.url}/{address}")
    expect(page.get_by_role("main").locator("h1").first).to_be_visible()
    page.evaluate(QUIET, CHANGES)
    expect(page.locator("main .loading")).to_have_count(0)
