"""Alerts over HTTP: whose they are, pages, acknowledgement, and the test of webhooks."""

import uuid

import pytest

from tandem.cluster.config import WebhookConfig
from tandem.serve.alerts.findings import Finding
from tandem.serve.keys import create_key

ALERTS = "/v1/preview/alerts"


def finding(number, entity="team", **links):
    return Finding("failed_jobs", str(number), f"Alert {number}", "cause", "remedy", entity, links=links)


@pytest.fixture
def headers(store):
    def of(role, entity="team"):
        return {"Authorization": f"Bearer {create_key(store, role, entity, role)}"}

    return of


def titles(response):
    assert response.status_code == 200, response.text
    return [alert["title"] for alert in response.json()["data"]]


def test_a_key_sees_the_alerts_of_its_entity_newest_first_in_pages(http, alerts, headers):
    alerts.open([finding(1), finding(2), finding(3), finding(4, "others"), finding(5, None)], [])
    page = http.get(ALERTS, params={"limit": 2})
    assert titles(page) == ["Alert 3", "Alert 2"] and page.json()["has_more"]
    assert titles(http.get(ALERTS, params={"after": page.json()["last_id"]})) == ["Alert 1"]
    assert titles(http.get(ALERTS, headers=headers("admin"))) == ["Alert 5", "Alert 3", "Alert 2", "Alert 1"]
    assert titles(http.get(ALERTS, headers=headers("train", "others"))) == ["Alert 4"]
    assert http.get(ALERTS, headers=headers("infer")).status_code == 403
    [theirs] = http.get(ALERTS, headers=headers("train", "others")).json()["data"]
    assert http.get(ALERTS, params={"after": theirs["id"]}).status_code == 422


def test_open_and_resolved_ones_and_those_of_a_model_or_job_can_be_chosen(http, alerts):
    model, job = str(uuid.uuid4()), str(uuid.uuid4())
    alerts.open([finding(1, model_id=model), finding(2, model_id=model, job_id=job), finding(3)], [])
    alerts.resolve(["failed_jobs:1"], [])
    assert titles(http.get(ALERTS, params={"state": "open"})) == ["Alert 3", "Alert 2"]
    assert titles(http.get(ALERTS, params={"state": "resolved"})) == ["Alert 1"]
    assert titles(http.get(ALERTS, params={"model_id": model})) == ["Alert 2", "Alert 1"]
    assert titles(http.get(ALERTS, params={"job_id": job})) == ["Alert 2"]
    assert http.get(ALERTS, params={"state": "closed"}).status_code == 422


def test_an_acknowledged_alert_stays_open_and_says_by_whom(http, alerts, headers, clock):
    [row] = alerts.open([finding(1)], [])
    assert http.get(f"{ALERTS}/count").json() == {"open": 1, "unacknowledged": 1}
    admin = headers("admin")
    first = http.post(f"{ALERTS}/{row.id}/acknowledge").json()
    assert first["state"] == "open" and first["acknowledged_by"] and first["acknowledged_at"]
    clock.advance(60)
    again = http.post(f"{ALERTS}/{row.id}/acknowledge", headers=admin).json()
    assert again["acknowledged_at"] == first["acknowledged_at"]
    assert again["acknowledged_by"] == first["acknowledged_by"]
    assert http.get(f"{ALERTS}/count").json() == {"open": 1, "unacknowledged": 0}


def test_alerts_of_others_and_of_the_service_are_out_of_reach(http, alerts, headers):
    rows = alerts.open([finding(1, "others"), finding(2, None)], [])
    for id in (rows[0].id, rows[1].id, str(uuid.uuid4())):
        response = http.post(f"{ALERTS}/{id}/acknowledge")
        assert (response.status_code, response.json()["error"]["code"]) == (404, "alert_not_found")
    assert http.post(f"{ALERTS}/{rows[1].id}/acknowledge", headers=headers("admin")).status_code == 200
    assert http.get(f"{ALERTS}/count").json() == {"open": 0, "unacknowledged": 0}


def test_admins_see_how_messages_fared(http, alerts, headers, receiver):
    alerts.open([finding(1)], [WebhookConfig(url=receiver.url)])
    assert http.get(ALERTS).json()["data"][0]["deliveries"] is None
    shown = http.get(ALERTS, headers=headers("admin"))
    [message] = shown.json()["data"][0]["deliveries"]
    assert (message["event"], message["state"], message["host"]) == ("opened", "pending", "127.0.0.1")
    assert "secret-path" not in shown.text


def test_a_test_goes_to_each_webhook_and_says_how_it_fared(http, headers, app, services, receiver):
    from dataclasses import replace

    admin = headers("admin")
    assert http.post(f"{ALERTS}/test").status_code == 403
    nothing = http.post(f"{ALERTS}/test", headers=admin)
    assert (nothing.status_code, nothing.json()["error"]["code"]) == (409, "no_webhook")
    hooks = WebhookConfig(url=receiver.url), WebhookConfig(url="http://127.0.0.1:9/secret-path", format="slack")
    app.state.services = replace(services, config=services.config.model_copy(update={"alerts": hooks}))
    response = http.post(f"{ALERTS}/test", headers=admin)
    assert [hook["state"] for hook in response.json()["webhooks"]] == ["delivered", "failed"]
    assert "secret-path" not in response.text
    assert [event["type"] for event in receiver.events] == ["test"]
