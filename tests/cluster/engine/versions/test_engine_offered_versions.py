"""Files of a version that reach an engine before the version can be fetched."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.cluster.engine.versions.finiteness import NotFiniteVersions
from tandem.cluster.engine.versions.version_checks import VersionChecks
from tandem.cluster.engine.versions.version_loader import VersionLoader
from tandem.cluster.errors import ArtifactError
from tandem.rl.checkpoint_files import ADAPTER, MANIFEST
from tandem.rl.checkpoints import LearnerState, seal_checkpoint
from tandem.rl.errors import CheckpointError
from tandem.rl.settings import LoraSettings


@pytest.fixture
def loader(tmp_path):
    def fetch(digest):
        raise ArtifactError(f"{digest} isn't durable")

    core = SimpleNamespace(llm=SimpleNamespace(model_config=SimpleNamespace(dtype=torch.float32)))
    return VersionLoader(core, None, str(tmp_path), fetch, LoraSettings(), NotFiniteVersions(), VersionChecks())


@pytest.fixture
def offer():
    """The digest and the files of a version, as they come from Ray's object store."""
    config = {"target_modules": ["q_proj"], "r": 8, "lora_alpha": 16}
    sealed = seal_checkpoint(LearnerState({"layer.lora_A.weight": torch.ones(8, 4)}), config, {})
    files = {name: np.frombuffer(sealed.contents[name], np.uint8) for name in (*ADAPTER_FILES, MANIFEST)}
    return sealed.digest, files


def test_an_offered_version_is_loaded_from_its_files_and_outlives_the_offer(loader, offer, tmp_path):
    digest, files = offer

    async def load():
        async with loader.offered(digest, files):
            return loader.private_copy(digest)[0]

    copy = asyncio.run(load())
    assert list(tmp_path.iterdir()) == [copy], "nothing else is left of the offer"
    for name in ADAPTER_FILES:
        assert (copy / name).read_bytes() == bytes(files[name])
    with pytest.raises(ArtifactError):
        loader.private_copy(digest)


def test_offered_files_of_another_version_are_refused_and_removed(loader, offer, tmp_path):
    digest, files = offer
    damaged = files[ADAPTER].copy()
    damaged[-1] ^= 1

    async def load():
        async with loader.offered(digest, files | {ADAPTER: damaged}):
            pass

    with pytest.raises(CheckpointError):
        asyncio.run(load())
    assert list(tmp_path.iterdir()) == []
