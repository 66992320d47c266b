"""Version 0 is created once per base model and LoRA settings."""

import shutil

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, BertGenerationConfig, GPTNeoConfig

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TINY, BaseModelConfig, LearnersConfig
from tandem.cluster.jobs.initial_version import initial_version
from tandem.cluster.learners.worker import LearnerWorker
from tandem.rl.errors import PolicyError
from tandem.rl.settings import LoraSettings


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


def test_a_base_model_that_cannot_be_trained_is_refused_by_its_name(version, tmp_path):
    GPTNeoConfig(num_layers=2, attention_types=[[["global", "local"], 1]]).save_pretrained(tmp_path / "model")
    config = BaseModelConfig(name="my/model", path=str(tmp_path / "model"))
    with pytest.raises(PolicyError, match=r"my/model.*gpt_neo.*local"):
        version(config)


def test_learners_refuse_a_base_model_by_its_name(tmp_path):
    BertGenerationConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    ).save_pretrained(tmp_path)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    lora = LoraSettings(target_modules=("query", "value"))
    learners = LearnersConfig(device="cpu")
    config = BaseModelConfig(name="my/model", path=str(tmp_path), lora=lora, learners=learners)
    with pytest.raises(PolicyError, match=r"my/model.*BertGeneration"):
        LearnerWorker(0, 1, config, str(tmp_path / "artifacts")).start(None, 60)


def test_an_engine_with_weights_of_another_shape_is_refused_by_what_differs(version, tiny_model, tmp_path):
    config = AutoConfig.from_pretrained(tiny_model)
    served = TINY.model_copy(update={"engine": TINY.engine.model_copy(update={"path": str(tmp_path / "other")})})
    config.save_pretrained(tmp_path / "other")
    digest, made = version(served)
    assert made and version(served) == (digest, False)
    config.vocab_size += 8
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(PolicyError, match="vocab_size"):
        version(served)
