"""Batches that the service rejects: repaired, or set aside, so that a run can be resumed."""

import json

import pytest
import zstandard

from tandem.client import Fault
from tandem.runs.errors import BatchRefusedError
from tandem.runs.repairing import repaired


def stored(path, index=0):
    file = path / "run" / "batches" / f"{index:06d}.groups.json.zst"
    return file, json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(file.read_bytes()))


def pack(groups):
    return zstandard.ZstdCompressor().compress(json.dumps(groups).encode())


def unpack(content):
    return json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(content))


def faults_of(body):
    """Reject metrics that are null, as the service does."""
    return [
        ("trajectory_groups", g, "trajectories", t, "metrics", name)
        for g, group in enumerate(body["trajectory_groups"])
        for t, trajectory in enumerate(group["trajectories"])
        for name, value in trajectory.get("metrics", {}).items()
        if value is None
    ]


def test_a_batch_of_an_older_release_with_null_metrics_is_repaired(service, task_file, do_run, tmp_path):
    service.fail_jobs = 1
    path = task_file(training={"jobs": 2, "max_policy_lag": 0})
    with pytest.raises(Exception, match="ran out of memory"):
        do_run(path)
    file, groups = stored(tmp_path)
    groups[1]["trajectories"][0]["metrics"] = {"accuracy": None, "turns": 1}
    file.write_bytes(pack(groups))
    service.jobs.clear()  # the batch was never accepted
    service.faults = faults_of
    report = do_run(path)
    assert service.step == 2 and [len(job.trajectories) for job in service.jobs] == [4, 4]
    assert service.jobs[0].trajectories[2]["metrics"] == {"turns": 1}
    assert any("batch 0" in said and "accuracy" in said for said in report.said)


def test_rejected_trajectories_are_left_out(service, task_file, do_run):
    place = ("trajectory_groups", 1, "trajectories", 0, "messages_and_choices", 1)
    service.faults = lambda body: [place] if len(body["trajectory_groups"][1]["trajectories"]) == 2 else []
    report = do_run(task_file(rollouts={"max_failed_fraction": 0.5}, training={"jobs": 1}))
    assert [len(group["trajectories"]) for group in service.jobs[0].body["trajectory_groups"]] == [2, 1]
    assert any("0 of group 1" in said for said in report.said)


def test_a_batch_that_cant_be_repaired_is_set_aside_and_rolled_out_again(service, task_file, do_run, tmp_path):
    service.faults = lambda body: [("trajectory_groups",)]
    path = task_file(training={"jobs": 2, "max_policy_lag": 0})
    with pytest.raises(BatchRefusedError, match="batch 0"):
        do_run(path)
    service.faults = lambda body: []
    do_run(path)
    assert service.step == 2
    assert len(list((tmp_path / "run" / "batches").glob("*aside1.groups*"))) == 1


@pytest.mark.parametrize("damage", ["cut off", "empty", "no metrics", "not zstd"])
def test_a_damaged_batch_is_rolled_out_again(service, task_file, do_run, tmp_path, damage):
    service.faults = lambda body: [("trajectory_groups",)]
    path = task_file(training={"jobs": 2, "max_policy_lag": 0})
    with pytest.raises(BatchRefusedError):
        do_run(path)
    for aside in (tmp_path / "run" / "batches").iterdir():
        aside.rename(aside.with_name(aside.name.replace(".aside1", "")))
    service.faults = lambda body: []
    file, _ = stored(tmp_path)
    match damage:
        case "cut off":
            file.write_bytes(file.read_bytes()[:-20])
        case "empty":
            file.write_bytes(b"")
        case "no metrics":
            file.with_name("000000.json").unlink()
        case "not zstd":
            file.write_bytes(b"[]")
    report = do_run(path)
    assert service.step == 2 and any("Batch 0" in said and "aside" in said for said in report.said)


def test_a_repair_removes_what_is_named_or_invalid_and_nothing_else():
    good = {"messages_and_choices": [{"role": "user", "content": "hi"}], "reward": 1.0}
    groups = [{"trajectories": [good, {**good, "reward": None}]}, {"trajectories": [good]}, {"trajectories": [good]}]
    fault = Fault(("body", "trajectory_groups", 2, "trajectories", 0, "reward"), "", "")
    repair = repaired(pack(groups), [fault])
    assert repair.removed == ((0, 1), (2, 0)) and repair.num_left == 2
    assert unpack(repair.groups_zstd) == [{"trajectories": [good]}, {"trajectories": [good]}]
    assert repaired(pack([{"trajectories": [good]}]), [Fault(("body", "model_id"), "", "")]) is None
