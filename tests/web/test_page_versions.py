"""Versions, playground, saved configurations, fine-tuning jobs and the management of models, in a real browser."""

import asyncio
import json
import re

import pytest
from playwright.sync_api import expect
from seeding_versions import BEST, HOSTILE, NUM_VERSIONS
from serve_fakes import choice
from waiting import wait_until

from tandem.serve.trajectories.indexing import index_next

SHOWN = "<img src=x onerror=alert(1)>U+202Egnp.exeU+200B"
"""How the page shows the hostile string."""


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


@pytest.fixture
def seeded(served):
    return served.seeded["versions"]


@pytest.fixture
def answers(served, monkeypatch):
    """Let the engine stream these words after the number of the version; an event between two of them waits."""
    sent = []

    def answers(*words):
        async def answer(annotator, send):
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
            await send(start)
            for number, word in enumerate((f"{annotator.step}", *words)):
                if isinstance(word, int | float):
                    await asyncio.sleep(word)
                else:
                    await send(_event(_chunk(number, word)))
            await send(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
            await send(_event({"choices": [], "usage": {"completion_tokens": 1 + len(words)}}))
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

        monkeypatch.setattr(served.engine, "_answer", answer)
        return sent

    return answers


def _event(content):
    return {"type": "http.response.body", "body": b"data: " + json.dumps(content).encode() + b"\n\n", "more_body": True}


def _chunk(number, word):
    name = f"token_id:{100 + number}"
    other = {"token": "token_id:5", "logprob": -2.0, "bytes": list(b"token_id:5")}
    entry = {"token": name, "logprob": -0.5, "bytes": list(word.encode()), "top_logprobs": [other]}
    return {"choices": [{"index": 0, "delta": {"content": word}, "logprobs": {"content": [entry]}}]}


def test_the_adapter_of_the_best_version_is_downloaded(served, open_page, seeded, clicks):
    model = seeded["model"]
    page = open_page(f"#/models/{model.id}/versions")
    with page.expect_download() as download:
        clicks(page.get_by_role("button", name=f"Download its adapter, version {BEST}"))
    expected = served.http("train").get(f"/v1/preview/models/{model.id}/versions/{BEST}/adapter").content
    assert download.value.suggested_filename == f"adapter-step{BEST}.tar"
    assert open(download.value.path(), "rb").read() == expected
    assert served.keys["train"] not in download.value.url


def test_version_3_answers_beside_version_9(served, open_page, seeded, clicks, answers):
    answers(" says ", HOSTILE, "!")
    asked = len(served.engine.asked)
    page = open_page(f"#/models/{seeded['small'].id}/versions")
    clicks(page.get_by_role("button", name="Version 3"))
    clicks(page.get_by_role("link", name="Compare with newest"))
    page.get_by_label("Prompt", exact=True).fill("Which are you?")
    clicks(page.get_by_role("button", name="Send"))
    for side, step in (("A", 3), ("B", 9)):
        answer = page.get_by_label(f"Answer of {side}")
        expect(answer).to_contain_text(f"{step} says {SHOWN}!")
        expect(answer).to_contain_text(re.compile(rf"version {step} .*4 tokens, first after .*in all"))
    requests, digests = zip(*[request[4:6] for request in served.engine.asked[asked:]], strict=True)
    assert set(digests) == {f"{9003:064x}", f"{9009:064x}"}
    assert all(request["messages"] == [{"role": "user", "content": "Which are you?"}] for request in requests)
    assert page.url.endswith("#/playground?a=team%2Fversions%2Fsmall%3Astep3&b=team%2Fversions%2Fsmall%3Astep9")


def test_the_playground_continues_stops_and_shows_tokens_with_an_infer_key(served, open_page, answers):
    answers(" one", " two")
    page = open_page("#/playground?a=team/versions/small:step4", role="infer")
    page.get_by_text("System prompt and sampling").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Seed").fill("7")
    page.get_by_label("Tools").fill("[}")
    prompt = page.get_by_label("Prompt", exact=True)
    prompt.fill("Count")
    prompt.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("Tools: this isn't JSON")
    page.get_by_label("Tools").fill(json.dumps(TOOLS))
    page.get_by_role("button", name="Show tokens").click()
    prompt.press("Enter")
    answer = page.get_by_label("Answer of A")
    expect(answer.first).to_contain_text("in all")
    answer.locator(".token").nth(2).click()
    expect(answer.first).to_contain_text('" two", id 102, logprob −0.5, probability 60.7 %')
    expect(answer.first).to_contain_text('"#5" 13.5 %')
    request = served.engine.asked[-1][4]
    assert (request["temperature"], request["seed"], request["top_logprobs"], request["tools"]) == (0.5, 7, 5, TOOLS)

    answers(" never", 60.0, " seen")
    closed = served.engine.closed
    prompt.fill("Go on")
    prompt.press("Enter")
    expect(answer.nth(1)).to_contain_text("never")
    page.get_by_role("button", name="Stop").click()
    expect(answer.nth(1)).to_contain_text("Stopped.")
    wait_until(lambda: served.engine.closed > closed)  # the engine stops generating
    said = served.engine.asked[-1][4]["messages"]
    assert [message["role"] for message in said] == ["system", "user", "assistant", "user"]
    assert said[2]["content"] == "4 one two"


def test_a_turn_of_a_trajectory_is_continued(served, open_page, seeded, answers):
    answers(" more")
    turns = [{"role": "user", "content": "1 + 6 = ?"}, choice(), {"role": "user", "content": HOSTILE}]
    rollout = {"messages_and_choices": turns, "tools": TOOLS, "reward": 1.0}
    body = {"model_id": seeded["small"].id, "split": "val", "trajectory_groups": [{"trajectories": [rollout]}]}
    log = served.http("train").post(f"/v1/preview/models/{seeded['small'].id}/log", json=body).json()["id"]
    while index_next(served.services.store, served.services.artifacts, served.services.config):
        pass
    page = open_page(f"#/playground?from={log}.0.0.3")
    expect(page.get_by_text("3 messages of the trajectory")).to_be_visible()
    expect(page.locator("input[name=model]")).to_have_value("team/versions/small")  # the one that sampled it
    expect(page.locator(".context-message").nth(2)).to_contain_text(SHOWN)
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_label("Answer of A")).to_contain_text("9 more")
    request = served.engine.asked[-1][4]
    assert [message["role"] for message in request["messages"]] == ["user", "assistant", "user"]
    assert request["messages"][1] == {"role": "assistant", "content": "seven"}
    assert request["messages"][2]["content"] == HOSTILE and request["tools"] == TOOLS


def test_an_error_in_the_playground_has_the_services_words(open_page, watch):
    watch.allow("status of 404")
    page = open_page("#/playground?a=team/versions/small:step77", role="infer")
    page.get_by_label("Prompt", exact=True).fill("Hi")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("step77")
    expect(page.get_by_role("alert")).to_contain_text("version_not_found")


def test_version_12_is_kept_from_deletion(served, open_page, seeded, clicks):
    model = seeded["model"]
    page = open_page(f"#/models/{model.id}/versions")
    page.get_by_label("Go to version").fill("12")
    page.get_by_label("Go to version").press("Enter")
    panel = page.get_by_label("Version 12", exact=True)
    clicks(panel.get_by_role("button", name="Keep"))
    expect(panel).to_contain_text("retention and deletions pass it over")
    expect(page.get_by_label("Versions, the newest first")).to_contain_text("Version 12")  # stands out now
    url = f"/v1/preview/models/{model.id}/checkpoints"
    assert served.http("train").request("DELETE", url, json={"steps": [12]}).status_code == 409
    clicks(panel.get_by_role("button", name="Delete…"))
    expect(page.get_by_role("dialog")).to_contain_text("Release it first")
    expect(page.get_by_role("button", name="Delete version 12")).to_be_disabled()


def test_a_thousand_versions_are_few_rows_that_open(open_page, seeded):
    page = open_page(f"#/models/{seeded['model'].id}/versions")
    rows = page.get_by_label("Versions, the newest first").locator(".version-row")
    expect(page.get_by_role("button", name=f"Version {NUM_VERSIONS}", exact=True)).to_be_visible()
    assert rows.count() < 20
    expect(page.get_by_role("button", name="Versions 1 to 8")).to_be_visible()
    expect(rows.filter(has_text="Versions 1 to 8")).to_contain_text("Deleted by retention")
    page.get_by_role("button", name=f"Versions {BEST + 1} to 995").click()
    expect(page.get_by_role("button", name="Version 900", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name=f"Versions {BEST + 1} to 895")).to_be_visible()
    page.get_by_role("button", name="Show its versions").first.click()
    nested = page.locator(".version-nested")
    expect(nested.get_by_role("button", name="Version 1", exact=True)).to_be_visible()
    nested.get_by_role("button", name="Version 1", exact=True).click()
    expect(page.get_by_role("heading", name="versions/forked")).to_be_visible()
    expect(page.get_by_label("Version 1", exact=True)).to_contain_text("team/versions/agent")


def test_a_version_is_forked_and_the_fork_deleted(served, open_page, seeded):
    page = open_page(f"#/models/{seeded['small'].id}/versions?step=8")
    panel = page.get_by_label("Version 8", exact=True)
    expect(panel).to_contain_text(SHOWN)
    panel.get_by_role("button", name="Fork from here…").click()
    page.get_by_label("Name").fill("a-fork")
    page.get_by_role("button", name="Fork", exact=True).click()
    expect(page.get_by_role("heading", name="versions/a-fork")).to_be_visible()
    expect(page.get_by_text("Version 1 is")).to_contain_text("version 8 of")
    page.get_by_role("link", name="Settings").click()
    page.get_by_role("button", name="Delete this model…").click()
    page.get_by_label("Type versions/a-fork to confirm").fill("versions/a-fork")
    page.get_by_role("button", name="Delete the model").click()
    wait_until(lambda: served.store.models.find("team", "versions", "a-fork") is None)


def test_a_version_is_deleted_after_its_consequences_were_named(served, open_page):
    model = (
        served.http("train")
        .post(
            "/v1/preview/models",
            json={"project": "versions", "name": "to-delete", "base_model": "tandem/tiny", "return_existing": True},
        )
        .json()["id"]
    )
    version = served.store.lineage.add_import(model, "team", 1, "d" * 64, {}, "e" * 64)
    page = open_page(f"#/models/{model}/versions?step={version.step}")
    page.get_by_role("button", name="Delete…").click()
    expect(page.get_by_role("dialog")).to_contain_text("team/versions/to-delete:step1 get 404 at once")
    expect(page.get_by_role("dialog")).to_contain_text("It is the newest version")
    page.get_by_role("button", name="Delete version 1").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert served.http("train").get(f"/v1/preview/models/{model}/checkpoints").json()["data"] == []


def test_the_log_of_the_last_failed_job_of_a_configuration(served, open_page, clicks):
    page = open_page("#/configurations")
    clicks(page.get_by_role("link", name="versions-nightly"))
    clicks(page.get_by_role("link", name="Log of the last failed job"))
    expect(page.get_by_role("heading", name="versions-first")).to_be_visible()
    expect(page.get_by_text("boot file: exit code 1")).to_be_visible()
    log = page.get_by_label("Log worker-0.log")
    expect(log).to_contain_text("099999 step")
    expect(log).to_contain_text(f"{SHOWN} green done")  # no title was set, no screen cleared
    expect(log.locator(".ansi-2.ansi-bold")).to_have_text("green")
    assert log.locator("li").count() < 100, "only the lines in sight are there"
    page.get_by_label("Find in the log").fill("NEEDLE")
    page.get_by_label("Find in the log").press("Enter")
    expect(log.locator("li.found")).to_contain_text("needle in the haystack")
    expect(page.get_by_role("status").filter(has_text="1 of 1")).to_be_visible()
    assert page.url.endswith("line=77778")
    with page.expect_download() as download:
        clicks(page.get_by_role("button", name="Download worker-0.log"))
    content = open(download.value.path(), encoding="utf-8").read()
    assert content.count("\n") == 100_000 and "needle" in content


def test_a_configuration_is_shown_and_its_run_refused_with_the_reason(open_page, watch):
    watch.allow("status of 403")
    page = open_page("#/configurations/versions-nightly")
    expect(page.get_by_label("Parameters")).to_contain_text(SHOWN)
    expect(page.get_by_label("Jobs", exact=True)).to_contain_text("running")
    page.get_by_role("button", name="Run…").click()
    page.get_by_role("button", name="Start the job").click()
    expect(page.get_by_role("alert")).to_contain_text("run_code: true")


def test_a_fine_tuning_job_is_cancelled(served, open_page, seeded, clicks):
    job = seeded["tuning"][1]["id"]
    page = open_page("#/fine-tuning")
    clicks(page.locator(f'a[href$="{job}"]'))
    expect(page.get_by_label("Events, the newest first")).to_contain_text("Created fine-tuning job")
    expect(page.locator("dl")).to_contain_text(SHOWN)
    clicks(page.get_by_role("button", name="Cancel the job"))
    expect(page.get_by_text("cancelled", exact=True)).to_be_visible()
    page.goto(f"{served.url}/#/fine-tuning?show=files")
    expect(page.get_by_label("Files", exact=True)).to_contain_text("rows <b>.jsonl")


def test_a_model_is_registered(open_page, watch):
    watch.allow("status of 4")
    page = open_page("#/")
    page.get_by_role("button", name="New model").click()
    dialog = page.get_by_role("dialog")
    dialog.locator("input[name=project]").fill("versions")
    dialog.locator("input[name=name]").fill("not a name")
    dialog.get_by_role("button", name="Register").click()
    expect(page.get_by_role("alert")).to_contain_text("body.name")
    dialog.locator("input[name=name]").fill("registered")
    dialog.get_by_role("button", name="Register").click()
    expect(page.get_by_role("heading", name="versions/registered")).to_be_visible()
    expect(page.get_by_text("rank 8")).to_be_visible()


@pytest.mark.parametrize("address", ["#/models/x/versions", "#/configurations", "#/fine-tuning"])
def test_an_infer_key_learns_which_role_a_view_needs(open_page, address):
    expect(open_page(address, role="infer").get_by_text("needs a key with role train")).to_be_visible()
