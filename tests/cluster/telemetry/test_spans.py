"""Traces against a collector on this machine: what arrives, and that a broken one costs nothing but spans."""

import gzip
import json
import logging
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tandem.cluster.config import TracingConfig
from tandem.cluster.jobs.job import ClaimedJob, PolicyVersion
from tandem.cluster.jobs.phases import Phase
from tandem.cluster.jobs.tracing import TracedPhases, record_end, traced
from tandem.cluster.telemetry import tracing
from tandem.cluster.telemetry.context import current_ids, logged_with
from tandem.cluster.telemetry.tracing import is_tracing, span, start_tracing, stop_tracing, valid_traceparent
from tandem.rl.config import TrainingConfig

PARENT = f"00-{'a' * 32}-{'b' * 16}-01"
UNSAMPLED = f"00-{'a' * 32}-{'b' * 16}-00"


class Collector:
    """Takes OTLP over HTTP, and answers with `status`."""

    def __init__(self):
        collector = self
        self.status, self.headers, self.spans, self.resources = 200, [], [], []
        self.answers = threading.Event()
        self.answers.set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.answers.wait(60)
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                if collector.status == 200:
                    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                        collector.resources.append(attributes(resource.resource))
                        collector.spans += [one for scope in resource.scope_spans for one in scope.spans]
                self.send_response(collector.status)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def named(self, name):
        [found] = [one for one in self.spans if one.name == name]
        return found


def attributes(of):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in of.attributes}


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.answers.set()
    collector.server.shutdown()


@pytest.fixture
def start(collector):
    level = logging.getLogger("opentelemetry").level

    def start(**settings):
        endpoint = settings.pop("endpoint", collector.url)
        start_tracing(TracingConfig(endpoint=endpoint, timeout_s=1, **settings), {"process": "learner", "rank": 1})

    yield start
    stop_tracing(0)
    logging.getLogger("opentelemetry").setLevel(level)


def job(**about):
    return ClaimedJob(
        id=str(uuid.uuid4()),
        payload_key="p",
        config=TrainingConfig(),
        policy="team/project/agent",
        model_id="model",
        attempt=1,
        version=PolicyVersion("model", 0, "d"),
        next_step=1,
        num_recorded_gradient_steps=0,
        accepted_at=1_000.0,
        **about,
    )


def test_without_settings_nothing_is_traced_and_no_library_is_loaded():
    code = """if True:
        import sys
        from tandem.cluster.config import LoggingConfig
        from tandem.cluster.telemetry.setup import Telemetry
        from tandem.cluster.telemetry.context import current_ids
        from tandem.cluster.telemetry.tracing import job_traceparent, span
        Telemetry(LoggingConfig()).set_up("api")
        with span("request") as opened:
            opened.note(a=1)
            assert current_ids() == {} and job_traceparent("job") is None
        print([name for name in sys.modules if name.startswith("opentelemetry")])
    """
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_spans_are_below_the_callers_and_carry_the_ids(start, collector):
    start(headers={"Authorization": "Bearer collector-token"})
    with logged_with(request_id="req_1", traceparent=PARENT), span("POST /x", is_server=True, size=3) as outer:
        outer.rename("POST /y")
        carried = current_ids()  # to another process
        with pytest.raises(ValueError), span("inner"):
            raise ValueError("key tdm_" + "a" * 43)
    with logged_with(**carried), span("elsewhere"):
        pass
    stop_tracing(30)
    outer, inner, elsewhere = collector.named("POST /y"), collector.named("inner"), collector.named("elsewhere")
    assert {one.trace_id.hex() for one in (outer, inner, elsewhere)} == {"a" * 32}
    assert outer.parent_span_id.hex() == "b" * 16
    assert inner.parent_span_id == elsewhere.parent_span_id == outer.span_id
    assert attributes(outer) == {"tandem.request_id": "req_1", "size": 3}
    assert inner.status.code == 2 and "tdm_..." in inner.status.message
    assert collector.headers[0]["authorization"] == "Bearer collector-token"
    about = collector.resources[0]
    assert (about["service.name"], about["tandem.rank"]) == ("tandem-learner", 1)


def test_the_callers_decision_holds_and_the_ratio_decides_otherwise(start, collector):
    start(sample_ratio=0.0)
    with logged_with(traceparent=UNSAMPLED), span("not wanted"):
        pass
    with span("own"):
        assert int(current_ids()["traceparent"][-2:], 16) & 1 == 0
    with logged_with(traceparent=PARENT), span("wanted"):
        pass
    stop_tracing(30)
    assert [one.name for one in collector.spans] == ["wanted"]


def test_the_trace_of_a_job_has_its_attempt_phases_and_a_link_to_its_request(start, collector):
    start()
    claim = job(request_id="req_1", traceparent=PARENT)
    with traced(claim):
        ids = current_ids()
        assert (ids["job_id"], ids["attempt"], ids["request_id"]) == (claim.id, 1, "req_1")
        TracedPhases().phase_ended(claim, Phase("score", 1_010.0, 1_012.5, 2.0))
        with logged_with(**ids), span("learner gradient step", rank=0):
            pass
        record_end(claim, "succeeded")
    stop_tracing(30)
    root, attempt, queued = (collector.named(name) for name in ("training job", "attempt", "queued"))
    score, step = collector.named("score"), collector.named("learner gradient step")
    assert len({one.trace_id for one in (root, attempt, queued, score, step)}) == 1
    assert root.parent_span_id == b"" and attempt.parent_span_id == queued.parent_span_id == root.span_id
    assert score.parent_span_id == step.parent_span_id == attempt.span_id
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in root.links] == [("a" * 32, "b" * 16)]
    assert root.start_time_unix_nano == 1_000 * 10**9
    assert (score.end_time_unix_nano - score.start_time_unix_nano) == 2_500_000_000
    assert attributes(root)["tandem.state"] == "succeeded" and attributes(score)["tandem.seconds"] == 2.0


def test_a_job_that_continues_has_no_span_of_its_own_yet(start, collector):
    start()
    claim = job()
    record_end(claim, "requeued")
    record_end(claim, "failed", "no memory")
    stop_tracing(30)
    [root] = collector.spans
    assert (root.status.code, root.status.message) == (2, "no memory")


def test_a_collector_that_refuses_costs_spans_and_one_warning(start, collector, caplog):
    collector.status = 400
    start()
    for _ in range(3):
        with span("x"):
            pass
    dropped = tracing._spans._dropped
    stop_tracing(30)
    assert dropped.count == 3
    assert len([record for record in caplog.records if "spans were dropped" in record.getMessage()]) == 1


def test_a_collector_that_hangs_holds_up_nothing(start, collector, caplog):
    collector.answers.clear()
    start(max_queue=64)
    for _ in range(2_000):
        with span("x"):
            pass
    spans = tracing._spans
    assert spans.num_dropped >= 2_000 - 2 * 64  # the queue, and a batch on its way
    stop_tracing(0)
    assert not is_tracing()
    assert len([record for record in caplog.records if "spans were dropped" in record.getMessage()]) == 1


@pytest.mark.parametrize(
    "text", [None, "", "00-" + "0" * 32 + "-" + "b" * 16 + "-01", "01" + PARENT[2:], PARENT + "-x", PARENT.upper()]
)
def test_a_traceparent_that_is_none_is_ignored(text):
    assert valid_traceparent(text) is None
    assert valid_traceparent(PARENT) == PARENT


def test_the_settings_are_refused_without_their_secrets():
    from tandem.cluster.config import TandemConfig

    with pytest.raises(ValueError) as caught:
        TandemConfig.load({"tracing": {"endpoint": "ftp://secret-host", "headers": {"Authorization": "secret"}}})
    assert "tracing.endpoint" in str(caught.value) and "secret" not in str(caught.value)
    assert "secret" not in repr(TracingConfig(endpoint="http://x", headers=json.loads('{"A": "secret"}')))
