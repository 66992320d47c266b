"""Access to the service's own Ray: its addresses and its token."""

import ipaddress
import os
import stat
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from tandem.cluster.processes.local_ray import TOKEN_PATH, ensure_token, token_authentication_is_on


def listening():
    """Yield (process name, address) of each TCP socket on which this process or a descendant listens."""
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    address = ipaddress.ip_address(connection.laddr.ip)
                    yield process.name(), getattr(address, "ipv4_mapped", None) or address
        except psutil.Error:  # the process has just ended
            continue


def test_it_listens_on_the_loopback_interface_alone(ray_local):
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())  # starts a worker process, too
    found = list(listening())
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    # Another test may have started replicas of Ray Serve. Their ports require the token.
    assert {name for name, address in found if not address.is_loopback and "replica" not in name.lower()} == set()


@pytest.mark.parametrize("token", [None, "", "f" * 64, "the right one"])
def test_without_its_token_it_answers_nothing(ray_local, token):
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    assert token_authentication_is_on()
    if token == "the right one":
        token = Path(os.environ[TOKEN_PATH]).read_text()
    metadata = [] if token is None else [("authorization", f"Bearer {token}")]
    with grpc.insecure_channel(ray.get_runtime_context().gcs_address) as channel:
        ask = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetAllNodeInfo
        request = gcs_service_pb2.GetAllNodeInfoRequest()
        if token and token != "f" * 64:
            assert len(ask(request, metadata=metadata, timeout=120).node_info_list) == 1
        else:
            with pytest.raises(grpc.RpcError) as caught:
                ask(request, metadata=metadata, timeout=120)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_token_is_made_once_for_this_user_alone(tmp_path):
    file = ensure_token(tmp_path / "home" / "token")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    first = file.read_text()
    assert len(bytes.fromhex(first)) == 32
    file.chmod(0o644)
    assert ensure_token(file).read_text() == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["token"]
    assert ensure_token(tmp_path / "other").read_text() != first
