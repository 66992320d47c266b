"""The start page: its lines run as they are shown, against the service whose address they have."""

import subprocess
import sys
import threading

import pytest
from playwright.sync_api import expect
from seeding import claim
from serve_fakes import choice
from waiting import wait_until

from tandem.cluster.jobs.job import PolicyVersion

DEADLINE_S = 60
CLIENTS = (
    "curl",
    "openai",
    "tandem.client",
    "openpipe-art",
    "tinker",
    "anthropic",
    "OpenAI Agents SDK",
    "tandem train",
)


def lines(page, served, client, role="train"):
    """Return the lines for a client, with the key."""
    page.get_by_role("link", name=client, exact=True).click()
    page.get_by_label("With my key in the lines").check()
    text = page.get_by_label(f"Lines for {client}", exact=True).inner_text()
    assert served.url in text and served.keys[role] in text
    return text


def run(command, text):
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def answers(served):
    """Let the engine answer a chat; one of the choices has the right number."""

    def answers(num):
        choices = [choice(message={"role": "assistant", "content": f"1{7 + index % 2}"}) for index in range(num)]
        body = {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "prompt_token_ids": [1, 2]}
        for index, one in enumerate(choices):
            one["index"] = index
        served.engine.answers(body | {"choices": choices, "usage": None})

    return answers


def test_every_client_has_about_twenty_lines_and_no_key_until_asked(served, open_page):
    page = open_page("#/start")
    for client in CLIENTS:
        page.get_by_role("link", name=client, exact=True).click()
        text = page.get_by_label(f"Lines for {client}", exact=True).inner_text()
        assert 5 <= len(text.splitlines()) <= 22 and served.url in text, client
        assert served.keys["train"] not in page.content()
        if client not in ("curl", "tandem train"):
            compile(text, client, "exec")


def test_the_lines_of_curl_run(served, open_page, answers):
    answers(1)
    assert '"policy_version":0' in run(["bash"], lines(open_page("#/start"), served, "curl")).replace(" ", "")


def test_the_lines_of_openai_run(served, open_page, answers):
    answers(1)
    assert "version 0" in run([sys.executable, "-"], lines(open_page("#/start"), served, "openai"))


def test_the_lines_of_tandem_client_train_a_version(served, open_page, answers):
    answers(8)
    text = lines(open_page("#/start"), served, "tandem.client")
    claimed = []

    def end_its_job():
        def is_claimed():
            claimed.extend(job for job in [claim(served)] if job)
            return any(job.model_id == served.store.models.find("team", "demo", "agent-1").id for job in claimed)

        wait_until(lambda: served.store.models.find("team", "demo", "agent-1"), DEADLINE_S)
        wait_until(is_claimed, DEADLINE_S)
        *others, own = claimed
        served.store.claims.complete(own, PolicyVersion(own.model_id, own.next_step, "a" * 64), {"reward": 0.5})
        for other in others:
            served.store.claims.hand_back(other, "it isn't of this test")

    thread = threading.Thread(target=end_its_job)
    thread.start()
    assert "version 1" in run([sys.executable, "-"], text)
    thread.join()


def test_the_address_and_the_role_are_shown(served, open_page):
    page = open_page("#/start", role="infer")
    expect(page.get_by_role("main")).to_contain_text(f"{served.url}/v1")
    expect(page.get_by_role("main")).to_contain_text("This key has role infer")
