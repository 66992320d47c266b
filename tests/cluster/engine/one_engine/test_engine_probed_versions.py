"""A version is served if it answers as the learner that made it, also before it can be fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import ray
from policy_reference import PolicyReference
from safetensors.torch import load_file, save_file

from one_engine.shared_engine import CONFIG, MESSAGES, TOLERANCE, VERSIONS, assert_choices_follow_policy, greedy
from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import WrongVersionError
from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG, MANIFEST
from tandem.rl.checkpoints import LearnerState, seal_checkpoint
from tandem.rl.errors import CheckpointError
from tandem.rl.version_probe import BASE, PREVIOUS, VersionProbe

pytestmark = pytest.mark.usefixtures("ray_local")

PROBE = [20, 300, 77, 41, 200, 33, 8, 450, 61, 99, 123, 321] * 2


def publish(
    artifacts: Artifacts, reference: PolicyReference, digest: str, files_of: str, made: str, previous: str
) -> None:
    """Store the adapter of `files_of` as version `digest`, with the probe of a learner that has made `made`."""
    shutil.copytree(artifacts.checkpoints_dir / files_of, artifacts.checkpoints_dir / digest)
    own, base, before = (reference.logprobs(version, PROBE).tolist() for version in (made, VERSIONS[0], previous))
    probe = VersionProbe(PROBE, own, "torch.float32", {BASE: base, PREVIOUS: before})
    manifest = {"metadata": {"probe": probe.to_json()}}
    (artifacts.checkpoints_dir / digest / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("made", "previous"),
    [(VERSIONS[0], VERSIONS[0]), (VERSIONS[1], VERSIONS[0]), (VERSIONS[2], VERSIONS[1]), (VERSIONS[0], VERSIONS[1])],
    ids=["nothing learned", "first", "second", "unlearned"],
)
def test_a_version_that_answers_as_its_learner_is_served(client, artifacts, reference, made, previous):
    digest = f"{VERSIONS.index(made) * 10 + VERSIONS.index(previous) + 0xC0:064x}"
    publish(artifacts, reference, digest, made, made, previous)
    report = ray.get(client.actor.check_version.remote(digest))
    assert report["is_right"] and report["max"] < TOLERANCE, report
    assert_choices_follow_policy(greedy(client, digest), reference, made)


def offered_files(artifacts: Artifacts, reference: PolicyReference, digest: str) -> tuple[str, dict[str, Any]]:
    """Return the digest and the files of a version that is nowhere on disk, with the weights of another one."""
    adapter = load_file(artifacts.checkpoints_dir / digest / ADAPTER)
    config = json.loads((artifacts.checkpoints_dir / digest / ADAPTER_CONFIG).read_bytes())
    probe = VersionProbe(PROBE, reference.logprobs(digest, PROBE).tolist(), "torch.float32")
    sealed = seal_checkpoint(LearnerState(adapter), config, {"probe": probe.to_json()})
    return sealed.digest, {name: sealed.contents[name] for name in (ADAPTER, ADAPTER_CONFIG, MANIFEST)}


def test_a_version_that_is_offered_answers_before_it_can_be_fetched_and_is_gone_after_its_eviction(
    client, artifacts, reference
):
    """As a version of a job that fails after its offer: nobody asks for it, and it makes room for others."""
    digest, files = offered_files(artifacts, reference, VERSIONS[2])
    assert ray.get(client.actor.check_version.remote(digest, files))["is_right"]
    completion = client.chat(digest, max_tokens=8, ignore_eos=True)
    assert_choices_follow_policy(completion, reference, VERSIONS[2])
    for other in VERSIONS[: CONFIG.max_cpu_loras]:
        client.chat(other, max_tokens=1)
    assert digest not in client.load()["adapters"]
    assert client.ask(digest, {"messages": MESSAGES}).status == 404


def test_offered_files_that_are_not_those_of_the_version_are_not_used(client, artifacts, reference):
    digest, files = offered_files(artifacts, reference, VERSIONS[3])
    files[ADAPTER] = files[ADAPTER][:-4] + b"none"
    with pytest.raises(CheckpointError):
        ray.get(client.actor.check_version.remote(digest, files))
    assert digest not in client.load()["adapters"]


def test_a_version_without_a_probe_is_served_unchecked(client):
    assert ray.get(client.actor.check_version.remote(VERSIONS[1])) is None


@pytest.mark.parametrize(
    ("files_of", "made", "previous", "instead"),
    [
        (VERSIONS[1], VERSIONS[2], VERSIONS[1], PREVIOUS),
        (VERSIONS[0], VERSIONS[2], VERSIONS[1], BASE),
        (VERSIONS[3], VERSIONS[2], VERSIONS[1], None),
        (VERSIONS[1], VERSIONS[0], VERSIONS[1], PREVIOUS),
    ],
    ids=["stale", "not applied", "another", "not unlearned"],
)
def test_an_adapter_that_is_not_that_of_its_version_is_refused(
    client, artifacts, reference, files_of, made, previous, instead
):
    digest = f"{VERSIONS.index(files_of) * 100 + VERSIONS.index(made) * 10 + VERSIONS.index(previous) + 0xD000:064x}"
    publish(artifacts, reference, digest, files_of, made, previous)
    report = ray.get(client.actor.check_version.remote(digest))
    assert not report["is_right"] and report["max"] > 0.01 and report["answers_as"] == instead
    for _ in range(2):
        answer = client.ask(digest, {"messages": MESSAGES})
        assert answer.status == 503 and digest in answer.json()["error"]["message"]
    with pytest.raises(WrongVersionError, match=r"nats"):
        client.score([[5, 6]], digest)
    assert digest not in client.load()["adapters"]
    assert_choices_follow_policy(greedy(client, VERSIONS[1]), reference, VERSIONS[1])


def test_an_adapter_that_lacks_tensors_is_refused(client, artifacts, reference):
    digest = "c5" * 32
    publish(artifacts, reference, digest, VERSIONS[2], VERSIONS[2], VERSIONS[1])
    file = artifacts.checkpoints_dir / digest / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.0." in name}, file)
    report = ray.get(client.actor.check_version.remote(digest))
    assert not report["is_right"]


def test_a_second_load_may_repair_a_version(client, artifacts, reference):
    """The first fetch returns the files of another version, as a stale cache might."""
    digest = "c6" * 32
    publish(artifacts, reference, digest, VERSIONS[2], VERSIONS[2], VERSIONS[1])
    stale = "c7" * 32
    publish(artifacts, reference, stale, VERSIONS[1], VERSIONS[2], VERSIONS[1])

    def be_stale_once(engine: Any) -> None:
        fetch = engine._loader._fetch

        def fetch_stale(_: str) -> Path:
            engine._loader._fetch = fetch
            return fetch(stale)

        engine._loader._fetch = fetch_stale

    ray.get(client.actor.__ray_call__.remote(be_stale_once))
    assert ray.get(client.actor.check_version.remote(digest))["is_right"]
    assert_choices_follow_policy(greedy(client, digest), reference, VERSIONS[2])
