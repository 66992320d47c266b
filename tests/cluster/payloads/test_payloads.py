import json
import pickle
import tracemalloc

import pytest
import zstandard

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.reading import MANY_FAULTS, PayloadError, read_groups
from tandem.serve.ingest.spool import Spool

GROUP = {"trajectories": [{"messages_and_choices": [{"role": "user", "content": "hi"}], "reward": 0.5}], "metadata": {}}


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path))


@pytest.fixture
def read(artifacts):
    def read(body, packed=zstandard.compress):
        artifacts.write_blob("payloads/a", packed(body if isinstance(body, bytes) else json.dumps(body).encode()))
        return list(read_groups(artifacts, "payloads/a"))

    return read


def test_groups_come_back_in_order_and_whole(read):
    groups = [{**GROUP, "metadata": {"n": n}} for n in range(5)]
    body = {"model_id": "m", "trajectory_groups": groups, "experimental_config": {"learning_rate": 1}}
    assert [group.model_dump(exclude_unset=True) for group in read(body)] == groups
    assert read({"trajectory_groups": []}) == []


def test_the_faults_of_all_groups_are_told_with_their_places(read):
    with pytest.raises(PayloadError) as error:
        read({"trajectory_groups": [GROUP, {"trajectories": 1}, 7, GROUP, {"trajectories": [{"reward": "x"}]}]})
    places = [
        ("trajectory_groups", 1, "trajectories"),
        ("trajectory_groups", 2),
        ("trajectory_groups", 4, "trajectories", 0, "reward"),
    ]
    assert [fault["loc"] for fault in error.value.faults] == places
    assert str(error.value).startswith("trajectory_groups.1.trajectories: ")
    assert str(error.value).endswith("(and 2 more faults)")
    copy = pickle.loads(pickle.dumps(error.value))
    assert (str(copy), copy.faults) == (str(error.value), error.value.faults)


@pytest.mark.parametrize(
    ("groups", "place", "type"),
    [
        ('[{"trajectories": [],}]', (0,), "json_invalid"),
        ('[{"trajectories": []},]', (1,), "json_invalid"),
        ('[,{"trajectories": []}]', (0,), "json_invalid"),
        ('[{"trajectories": []} {"trajectories": []}]', (0,), "json_invalid"),
        ('[{"trajectories": [], "logs": ["\\ud800"]}]', (0,), "json_invalid"),
        ('[{"trajectories": [], "a": NaN}]', (0, "a"), "not_finite"),
        ('[{"trajectories": []}, {"trajectories": [], "a": [0, 1e999]}]', (1, "a", 1), "not_finite"),
    ],
)
def test_text_that_is_not_json_is_a_fault_of_its_group(read, groups, place, type):
    with pytest.raises(PayloadError) as error:
        read(f'{{"trajectory_groups": {groups}}}'.encode())
    [fault] = error.value.faults
    assert (fault["loc"], fault["type"]) == (("trajectory_groups", *place), type)
    assert ("of this group" in fault["msg"]) == (type == "json_invalid")


def test_no_group_is_made_after_a_fault(artifacts):
    body = {"trajectory_groups": [GROUP, {"trajectories": None}, GROUP]}
    artifacts.write_blob("payloads/a", zstandard.compress(json.dumps(body).encode()))
    groups = read_groups(artifacts, "payloads/a")
    next(groups)
    with pytest.raises(PayloadError, match=r"trajectory_groups\.1\.trajectories"):
        next(groups)


def test_a_flood_of_faults_ends_the_reading(read):
    with pytest.raises(PayloadError) as error:
        read({"trajectory_groups": [1] * (2 * MANY_FAULTS)})
    assert MANY_FAULTS <= len(error.value.faults) < 2 * MANY_FAULTS


def test_a_damaged_body_is_said_to_be_damaged(read, artifacts):
    body = {"trajectory_groups": [{**GROUP, "logs": ["x" * 100_000]}] * 3}
    for packed in (lambda b: zstandard.compress(b)[:-5], lambda b: b"\x00" * 100, lambda b: b""):
        with pytest.raises(ArtifactError, match="payloads/a is damaged"):
            read(body, packed)
    with pytest.raises(ArtifactError, match="payloads/b"):
        next(read_groups(artifacts, "payloads/b"))


def test_a_body_that_has_changed_since_it_was_stored_is_damaged(artifacts, tmp_path):
    spool = Spool(tmp_path)
    spool.write(json.dumps({"trajectory_groups": [GROUP]}).encode())
    spool.finish()
    packed = spool.path.read_bytes()
    artifacts.write_blob("payloads/a", packed)
    assert len(list(read_groups(artifacts, "payloads/a"))) == 1
    artifacts.write_blob("payloads/b", packed[:-1] + bytes([packed[-1] ^ 1]))  # of the checksum
    with pytest.raises(ArtifactError, match="payloads/b is damaged"):
        list(read_groups(artifacts, "payloads/b"))


def test_only_one_group_is_in_memory(artifacts):
    group_bytes, num_groups = 1_000_000, 30
    text = json.dumps({**GROUP, "logs": ["x" * group_bytes]}).encode()
    body = b'{"trajectory_groups": [' + b",".join([text] * num_groups) + b"]}"
    artifacts.write_blob("payloads/a", zstandard.compress(body))
    tracemalloc.start()
    assert sum(1 for _ in read_groups(artifacts, "payloads/a")) == num_groups
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * group_bytes
