"""Alerts from finding to webhook: once, in order, signed, with retries, and by one process."""

import base64
import hashlib
import hmac

import pytest

from tandem.cluster.config import AlertRulesConfig, TandemConfig, WebhookConfig
from tandem.serve.alerts.delivery import Delivery
from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.store import Viewer
from tandem.serve.alerts.watch import AlertWatch
from tandem.serve.alerts.webhooks import DeliveryError

SECRET = "whsec_" + base64.b64encode(bytes(range(24))).decode()
STUCK = Finding("stuck_job", "job", "A job is stuck", "No event <b>.", "Cancel it.", "team", links={"job_id": "job"})
DISK = Finding("disk_nearly_full", "artifacts", "The disk is full", "1 GB.", "Add space.")
ADMIN, OTHER = Viewer("team", True), Viewer("others", False)


class Facts:
    """Rules whose findings tests set."""

    def __init__(self):
        self.findings, self.unknown = [], set()

    def find(self, open_models):
        return self.findings


class Service:
    def __init__(self, facts):
        self.facts = facts

    def find(self):
        return [], self.facts.unknown


@pytest.fixture
def facts():
    return Facts()


@pytest.fixture
def make(tmp_path, alerts, facts):
    def make(*webhooks, **rules):
        config = TandemConfig(home=tmp_path, alerts=webhooks, alert_rules=AlertRulesConfig(**rules))
        delivery = Delivery(alerts, config.alerts, config.alert_rules)
        return AlertWatch(config, alerts, facts, Service(facts), delivery), delivery

    return make


def states(alerts, viewer=ADMIN):
    return [(row.kind, row.resolved_at is None) for row in alerts.page(viewer, 100)]


def test_an_alert_opens_once_and_ends_after_two_absences(make, alerts, facts):
    watch, _ = make()
    facts.findings = [STUCK]
    watch.evaluate()
    watch.evaluate()
    assert states(alerts) == [("stuck_job", True)]
    facts.findings = []
    watch.evaluate()
    assert states(alerts) == [("stuck_job", True)]
    facts.findings = [STUCK]
    watch.evaluate()
    facts.findings = []
    watch.evaluate()
    assert states(alerts) == [("stuck_job", True)], "it was there in between"
    watch.evaluate()
    assert states(alerts) == [("stuck_job", False)]
    facts.findings = [STUCK]
    watch.evaluate()
    assert states(alerts) == [("stuck_job", True), ("stuck_job", False)]


def test_what_is_not_known_neither_opens_nor_ends_an_alert(make, alerts, facts):
    watch, _ = make()
    facts.findings = [DISK]
    watch.evaluate()
    facts.findings, facts.unknown = [], {"disk_nearly_full"}
    for _ in range(3):
        watch.evaluate()
    assert states(alerts) == [("disk_nearly_full", True)]


def test_an_entity_sees_its_own_and_admins_those_of_the_service(make, alerts, facts):
    watch, _ = make()
    facts.findings = [STUCK, DISK]
    watch.evaluate()
    assert len(states(alerts)) == 2
    assert states(alerts, Viewer("team", False)) == [("stuck_job", True)]
    assert states(alerts, OTHER) == []
    assert states(alerts, Viewer("others", True)) == [("disk_nearly_full", True)]


def test_one_process_evaluates_at_a_time(alerts, clock):
    assert alerts.hold_lease("one", 60) and alerts.hold_lease("one", 60)
    assert not alerts.hold_lease("two", 60)
    clock.advance(61)
    assert alerts.hold_lease("two", 60) and not alerts.hold_lease("one", 60)
    alerts.release_lease("one")
    assert not alerts.hold_lease("one", 60)
    alerts.release_lease("two")
    assert alerts.hold_lease("one", 60)


def test_a_message_is_signed_as_standard_webhooks_are(make, receiver, facts):
    watch, delivery = make(WebhookConfig(url=receiver.url, secret=SECRET))
    facts.findings = [STUCK]
    watch.evaluate()
    delivery.deliver()
    [(path, headers, body)] = receiver.got
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == "/hook/secret-path" and headers["content-type"] == "application/json"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(bytes(range(24)), signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{wanted}"
    [event] = receiver.events
    assert event["type"] == "alert.opened"
    about = {key: event["data"][key] for key in ("kind", "entity", "title", "cause", "remedy", "links")}
    assert about == {
        "kind": "stuck_job",
        "entity": "team",
        "title": "A job is stuck",
        "cause": "No event <b>.",
        "remedy": "Cancel it.",
        "links": {"job_id": "job"},
    }


def test_opening_and_end_arrive_in_order_once(make, alerts, receiver, facts):
    watch, delivery = make(WebhookConfig(url=receiver.url))
    facts.findings = [STUCK]
    watch.evaluate()
    facts.findings = []
    watch.evaluate()
    watch.evaluate()
    delivery.deliver()
    delivery.deliver()
    assert [event["type"] for event in receiver.events] == ["alert.opened", "alert.resolved"]
    [row] = alerts.page(ADMIN, 1)
    assert [message.state for message in alerts.deliveries([row.id])[row.id]] == ["delivered", "delivered"]


def test_a_webhook_gets_the_kinds_that_it_asked_for(make, receiver, facts):
    watch, delivery = make(WebhookConfig(url=receiver.url, events=("disk_nearly_full",)))
    facts.findings = [STUCK, DISK]
    watch.evaluate()
    delivery.deliver()
    assert [event["data"]["kind"] for event in receiver.events] == ["disk_nearly_full"]


def test_slack_gets_a_text_whose_brackets_are_no_links(make, receiver, facts):
    watch, delivery = make(WebhookConfig(url=receiver.url, format="slack"))
    facts.findings = [STUCK]
    watch.evaluate()
    delivery.deliver()
    assert receiver.events == [{"text": "[Warning] A job is stuck\nNo event &lt;b&gt;.\nCancel it."}]


def test_a_failed_message_is_retried_later_and_holds_back_the_next_one(make, alerts, receiver, facts, clock):
    watch, delivery = make(WebhookConfig(url=receiver.url))
    receiver.status = 500
    facts.findings = [STUCK, DISK]
    watch.evaluate()
    delivery.deliver()
    delivery.deliver()
    assert len(receiver.got) == 1
    clock.advance(4)
    delivery.deliver()
    assert len(receiver.got) == 1
    clock.advance(1)
    delivery.deliver()
    assert len(receiver.got) == 2
    assert receiver.got[0][1]["webhook-id"] == receiver.got[1][1]["webhook-id"]
    clock.advance(9)
    delivery.deliver()
    assert len(receiver.got) == 2, "the second pause is 10 s"
    clock.advance(1)
    receiver.status = 200
    delivery.deliver()
    assert [event["data"]["kind"] for event in receiver.events[2:]] == ["stuck_job", "disk_nearly_full"]
    by_kind = {row.kind: row.id for row in alerts.page(ADMIN, 2)}
    [message] = alerts.deliveries([by_kind["stuck_job"]])[by_kind["stuck_job"]]
    assert (message.state, message.num_attempts, message.error) == ("delivered", 3, None)


def test_a_message_is_given_up_at_its_deadline(make, alerts, receiver, facts, clock):
    watch, delivery = make(WebhookConfig(url=receiver.url), webhook_deadline_s=12)
    receiver.status = 404
    facts.findings = [STUCK]
    watch.evaluate()
    for _ in range(4):
        delivery.deliver()
        clock.advance(10)
    [row] = alerts.page(ADMIN, 1)
    [message] = alerts.deliveries([row.id])[row.id]
    assert (message.state, message.num_attempts, len(receiver.got)) == ("failed", 2, 2)
    assert "404" in message.error and "secret-path" not in message.error


def test_one_broken_webhook_does_not_hold_back_another(make, receiver, facts):
    watch, delivery = make(WebhookConfig(url="http://127.0.0.1:9/secret-path"), WebhookConfig(url=receiver.url))
    facts.findings = [STUCK, DISK]
    watch.evaluate()
    delivery.deliver()
    assert len(receiver.got) == 2


def test_redirects_are_not_followed(receiver):
    from tandem.serve.alerts.webhooks import send

    receiver.status, receiver.headers = 307, {"Location": receiver.url}
    with pytest.raises(DeliveryError, match="redirects"):
        send(WebhookConfig(url=receiver.url), "id", b"{}", 10)
    assert len(receiver.got) == 1


def test_messages_of_a_removed_webhook_are_given_up(make, alerts, facts, receiver):
    watch, _ = make(WebhookConfig(url=receiver.url))
    facts.findings = [STUCK]
    watch.evaluate()
    _, without = make()
    without.deliver()
    assert alerts.pending(10) == [] and receiver.got == []


def test_alerts_that_are_over_are_forgotten_after_a_while(make, alerts, facts, clock, receiver):
    watch, _ = make(WebhookConfig(url=receiver.url))
    facts.findings = [STUCK]
    watch.evaluate()
    facts.findings = [DISK]
    watch.evaluate()
    watch.evaluate()
    clock.advance(100)
    assert alerts.forget(alerts.now()) == 1
    assert states(alerts) == [("disk_nearly_full", True)]


@pytest.mark.parametrize(
    "settings",
    [
        {"url": "ftp://host/x"},
        {"url": "https://user:password@host/x"},
        {"url": "https:///x"},
        {"url": "https://host/x", "secret": "short"},
        {"url": "https://host/x", "secret": "whsec_not base64 at all"},
        {"url": "https://host/x", "events": ["nothing"]},
    ],
)
def test_a_webhook_that_cannot_work_is_refused_without_its_secrets(settings):
    with pytest.raises(ValueError) as caught:
        TandemConfig.load({"alerts": [settings]})
    assert "alerts.0" in str(caught.value)
    assert "password" not in str(caught.value).replace("user or password", "") and "short" not in str(caught.value)
