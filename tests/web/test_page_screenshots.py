"""A picture of each view for docs/page.md: `make screenshots` writes them into docs/images/page.

Without TANDEM_SCREENSHOTS, only that each view has its picture in the documentation is tested.
"""

import io
import os
from pathlib import Path

import pytest
from paths import ROOT
from PIL import Image
from views import PICTURES, route_paths, show, views

FOLDER = os.environ.get("TANDEM_SCREENSHOTS")
COLORS = 128  # enough for flat colours and antialiased text, and a fifth of the bytes


def test_each_view_has_its_picture_in_the_documentation():
    text = (ROOT / "docs/page.md").read_text()
    assert set(PICTURES) == set(route_paths())
    for name in PICTURES.values():
        assert f"images/page/{name}.png" in text, name


def save(page, name):
    picture = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    picture.convert("RGB").quantize(COLORS).save(Path(FOLDER) / f"{name}.png", optimize=True)


@pytest.mark.skipif(FOLDER is None, reason="TANDEM_SCREENSHOTS names no folder; make screenshots does")
def test_take_the_pictures(served, open_page):
    Path(FOLDER).mkdir(parents=True, exist_ok=True)
    addresses = views(served)
    page = open_page("#/start", role="admin")
    for route, name in PICTURES.items():
        show(page, served, addresses[route])
        page.wait_for_timeout(300)  # charts draw after their data is there
        save(page, name)
    for name, route, options in (
        ("dark", "/models/:id", {"dark": True}),
        ("phone", "/jobs/:id", {"width": 390, "device_scale_factor": 2}),
    ):
        page = open_page("#/start", role="admin", **options)
        show(page, served, addresses[route])
        page.wait_for_timeout(300)
        save(page, name)
