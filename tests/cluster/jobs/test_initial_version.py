"""Version 0 is created once per base model and LoRA settings."""

import shutil

import pytest

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY
from tandem.cluster.jobs.initial_version import initial_version


@pytest.fixture
def artifacts(tmp_path):
    return Artifacts(str(tmp_path))


@pytest.fixture
def version(artifacts):
    """Return version 0 of a configuration, and whether this call created it."""

    def version(config):
        base, made = ResolvedBaseModel(config), []

        def make(name):
            made.append(name)
            return base.write_initial_version(artifacts)

        return initial_version(base, artifacts, make), made == [config.name]

    return version


def test_the_next_start_uses_the_version_of_the_first(version):
    digest, made = version(TINY)
    assert made
    assert version(TINY) == (digest, False)


def test_other_settings_make_another_version(version):
    digest, _ = version(TINY)
    lora = TINY.lora.model_copy(update={"r": TINY.lora.r * 2})
    other, made = version(TINY.model_copy(update={"lora": lora}))
    assert made and other != digest
    assert version(TINY.model_copy(update={"name": "another/name"}))[1]


def test_a_lost_checkpoint_is_made_again(version, artifacts):
    digest, _ = version(TINY)
    shutil.rmtree(artifacts.checkpoints_dir / digest)
    assert version(TINY) == (digest, True)
    assert artifacts.pull_adapter(digest).is_dir()
