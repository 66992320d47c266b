"""Serve replicas accept pickles on a port that isn't bound to the loopback interface, so it must require the token."""

import pickle

import grpc
import psutil
import pytest
from helpers import processes
from ray.serve.generated import serve_pb2, serve_pb2_grpc


def replica_ports():
    for process in processes(lambda process: "replica" in process.name().lower()):
        for connection in process.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("::", "0.0.0.0"):
                yield connection.laddr.port


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


def test_a_replica_unpickles_nothing_without_the_token(service, tmp_path):
    trace, ports = tmp_path / "unpickled", list(replica_ports())
    assert len(ports) >= 3  # the API, the coordinator, the engine
    request = serve_pb2.ASGIRequest(pickled_request_metadata=pickle.dumps(Payload(trace)))
    for port in ports:
        for metadata in ([], [("authorization", f"Bearer {'f' * 64}")]):
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
                serve_pb2_grpc.ASGIServiceStub(channel).HandleRequest(request, metadata=metadata, timeout=120)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert not trace.exists()
