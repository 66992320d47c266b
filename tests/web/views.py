"""The address of every view, with data to show, for the tests that look at all views."""

import re

from paths import ROOT

ROUTES = ROOT / "serve" / "web" / "src" / "app" / "routes.ts"


def route_paths():
    """Return the paths of all routes, as routes.ts has them."""
    return re.findall(r'^    path: "([^"]+)"', ROUTES.read_text(), re.M)


def views(served):
    """Return the address of each view by its route. An admin's key sees them all."""
    seeded = served.seeded
    versions = seeded["versions"]
    return {
        "/": "#/",
        "/cluster": "#/cluster",
        "/configurations": "#/configurations",
        "/configurations/:id": "#/configurations/versions-nightly",
        "/fine-tuning": "#/fine-tuning",
        "/fine-tuning/:id": f"#/fine-tuning/{versions['tuning'][1]['id']}",
        "/keys": "#/keys",
        "/models/:id/settings": f"#/models/{versions['model'].id}/settings",
        "/models/:id/versions": f"#/models/{versions['model'].id}/versions",
        "/playground": "#/playground?a=team/versions/agent:step1&b=tandem/tiny",
        "/start": "#/start?client=tandem",
        "/user-jobs/:id": f"#/user-jobs/{versions['jobs']['versions-first'][0]}",
    }
