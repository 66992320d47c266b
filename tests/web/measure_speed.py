"""Measurements of the page's speed for benchmarks/page_speed.py. Not a test: it asserts no time."""

import json
import os
import platform
from pathlib import Path
from statistics import median

from seeding_runs import add_versions
from serve_fakes import choice, trajectory
from sqlalchemy import select
from views import show

from tandem.serve.store.tables.training import JobRow
from tandem.serve.trajectories.indexing import index_next

NUM_VERSIONS, NUM_JOBS, GROUPS_PER_JOB, GROUP_SIZE = 1000, 10, 125, 8
REPEATS = 7
BASE = "tandem/tiny"
# The time from the start of the navigation to the first frame in which the selector has what it should show.
SHOWN_AT = """([selector, least]) => new Promise(resolve => {
    const look = () => document.querySelectorAll(selector).length >= least
        ? requestAnimationFrame(() => setTimeout(() => resolve(performance.now())))
        : requestAnimationFrame(look);
    look();
})"""
# Scroll a list down, a step per frame, and note the length of each frame and of each long task.
SCROLL = """async ([selector, frames, step]) => {
    const tasks = [], times = [];
    const observer = new PerformanceObserver(list => list.getEntries().forEach(entry => tasks.push(entry.duration)));
    observer.observe({entryTypes: ["longtask"]});
    const box = document.querySelector(selector) ?? document.scrollingElement;
    let last = await new Promise(requestAnimationFrame);
    for (let frame = 0; frame < frames; frame++) {
        box.scrollTop += step;
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    await new Promise(resolve => setTimeout(resolve, 300));
    observer.disconnect();
    return {times, tasks, rows: box.querySelectorAll("tbody tr").length, top: box.scrollTop};
}"""


def seed(served):
    """Add a model of many versions, and one with many trajectories."""
    store = served.store
    model = store.models.add("team", "speed", "curves", BASE, return_existing=True)
    add_versions(store, model.id, NUM_VERSIONS, 0.01, seed=7)
    found = store.models.add("team", "speed", "trajectories", BASE, return_existing=True)
    http = served.http("train")
    turns = [{"role": "user", "content": "1 + 6 = ?"}, choice(policy_version=1)]
    for job in range(NUM_JOBS):
        groups = [
            {"trajectories": [trajectory(n / 8 + g / 999, messages_and_choices=turns) for n in range(GROUP_SIZE)]}
            for g in range(GROUPS_PER_JOB)
        ]
        body = {"model_id": found.id, "trajectory_groups": groups}
        posted = http.post("/v1/preview/training-jobs", json=body, timeout=600)
        posted.raise_for_status()
        with store.database.write() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == posted.json()["id"]))
            row.state, row.step, row.ended_at = "succeeded", job + 1, store.database.now()
    while index_next(store, served.services.artifacts, served.services.config):
        pass
    return model.id


def summary(values):
    ordered = sorted(values)
    return {"median": round(median(ordered), 1), "max": round(ordered[-1], 1), "num": len(ordered)}


def first_paint(open_page, address, selector, least=1):
    """Return the ms from the load of the page, with its files in no cache, to the first content and to the data."""
    page = open_page(address)
    shown = page.evaluate(SHOWN_AT, [selector, least])
    return page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"), shown


def change_of_view(page, address, selector, least=1):
    """Return the ms from a click on a link to the first frame with the data, in a page that is open."""
    page.evaluate("address => { window.began = performance.now(); location.hash = address; }", address)
    return page.evaluate(SHOWN_AT, [selector, least]) - page.evaluate("window.began")


def test_measure(served, open_page):
    curves = seed(served)
    model, chart = f"#/models/{curves}", "main canvas"
    find, rows = "#/trajectories?model=speed%2Ftrajectories", "main tbody tr"
    result = {
        "versions": NUM_VERSIONS,
        "trajectories": NUM_JOBS * GROUPS_PER_JOB * GROUP_SIZE,
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "load": os.getloadavg()[0]},
    }
    for name, *asked in (("model", model, chart), ("trajectories", find, rows, 10)):
        content, data = zip(*(first_paint(open_page, *asked) for _ in range(REPEATS)), strict=True)
        result[f"first_paint_{name}_ms"] = {"content": summary(content), "data": summary(data)}
    page = open_page("#/start")
    show(page, served, "#/start")
    changes = []
    for _ in range(REPEATS):
        changes.append(change_of_view(page, model, chart))
        show(page, served, "#/start")
    result["change_to_model_ms"] = summary(changes)
    for name, address in (("trajectories", find), ("versions", f"#/models/{curves}/versions")):
        page = open_page(address)
        show(page, served, address)
        scrolled = page.evaluate(SCROLL, ["main .table-box", 240, 60])
        result[f"scroll_{name}"] = {
            "frame_ms": summary(scrolled["times"]),
            "frames_over_50_ms": sum(time > 50 for time in scrolled["times"]),
            "long_task_ms": summary(scrolled["tasks"]) if scrolled["tasks"] else None,
            "rows_rendered": scrolled["rows"],
            "scrolled_px": scrolled["top"],
        }
    text = json.dumps(result, indent=2) + "\n"
    Path(os.environ.get("TANDEM_SPEED_RESULT", os.devnull)).write_text(text)
