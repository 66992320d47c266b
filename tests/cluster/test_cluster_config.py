import subprocess
import sys

import pytest
from pydantic import ValidationError

from tandem.cluster.config import BaseModelConfig, TandemConfig
from tandem.rl.errors import LoraLimitError
from tandem.rl.settings import LoraSettings


def write(tmp_path, text):
    path = tmp_path / "tandem.yaml"
    path.write_text(text)
    return path


def test_without_a_file_it_is_the_tiny_model_on_sqlite(monkeypatch, tmp_path):
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    config = TandemConfig.load()
    assert [base.path for base in config.base_models] == ["builtin:tiny"]
    assert config.resolved_store_url == f"sqlite:///{tmp_path}/tandem.db"
    assert config.artifacts_root == str(tmp_path / "artifacts")


def test_a_file_overrides_defaults_and_the_environment_overrides_the_file(monkeypatch, tmp_path):
    monkeypatch.setenv("TANDEM_HTTP__PORT", "9000")
    path = write(
        tmp_path,
        "http: {port: 8001, host: 0.0.0.0}\nbase_models:\n  - {name: a/b, path: some/model, learners: {count: 2}}\n",
    )
    config = TandemConfig.load(path)
    assert (config.http.host, config.http.port) == ("0.0.0.0", 9000)
    assert config.base_model("a/b").learners.count == 2
    assert config.base_model("a/b").engine.max_cpu_loras == 16  # the rest keeps its default


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hme: /tmp", "hme"),
        ("base_models:\n  - {name: a/b, path: x, learners: {count: 0}}", "base_models.0.learners.count"),
        ("base_models:\n  - {name: a/b, path: x}\n  - {name: a/b, path: y}", "a/b more than once"),
        ("base_models:\n  - {name: a b, path: x}", "base_models.0.name"),
        ("base_models:\n  - {name: a, path: x, learners: {count: 4, shard: 3}}", "shard 3 doesn't divide count 4"),
        (
            "base_models:\n  - {name: a, path: x, learners: {count: 2, shard: 2, compile: true}}",
            "compile isn't supported",
        ),
        (
            "base_models:\n  - {name: a, path: x, learners: {sequences_per_step: 1, tokens_per_step: 9}}",
            "remove one of them",
        ),
        ("base_models:\n  - {name: a, path: x, learners: {tokens_per_step: jobs}}", "learners.tokens_per_step"),
        ("base_models:\n  - {name: a, path: x, lora: {target_modules: [lm_head]}}", "lm_head can't be adapted"),
    ],
)
def test_a_fault_is_named(tmp_path, text, named):
    with pytest.raises(ValueError, match="not valid") as error:
        TandemConfig.load(write(tmp_path, text))
    assert named in str(error.value)


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e300"])
@pytest.mark.parametrize(
    "field",
    [
        "deadlines.step_s",
        "coordinator.lease_s",
        "base_models.0.optimizer.learning_rate",
        "base_models.0.lora.alpha",
        "base_models.0.learners.num_cpus",
        "base_models.0.engine.gpu_memory_utilization",
        "base_models.0.logprobs.tolerance_float32",
        "base_models.0.logprobs.takeover_s",
    ],
)
def test_numbers_that_are_not_finite_or_absurd_are_refused_at_their_field(tmp_path, field, value):
    *sections, name = field.removeprefix("base_models.0.").split(".")
    inner = "{" + f"{sections[0]}: {{{name}: {value}}}" + "}"
    text = f"base_models: [{{name: a, path: b, {inner[1:-1]}}}]" if field.startswith("base_models") else inner
    with pytest.raises(ValueError, match=f"{name}: Input should be"):
        TandemConfig.load(write(tmp_path, text))


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(ValueError, match=r"no configuration file at .*absent\.yaml"):
        TandemConfig.load(tmp_path / "absent.yaml")


def test_reading_the_configuration_loads_neither_torch_nor_vllm():
    code = "import sys, tandem.cluster.config; print([m for m in ('torch', 'vllm', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_tolerance_of_logprobs_is_that_of_the_less_precise_side():
    def tolerance(learners=None, engine=None):
        return BaseModelConfig(name="m", path="x", learners=learners or {}, engine=engine or {}).logprob_tolerance

    assert tolerance() == tolerance({"num_gpus": 0}, {"num_gpus": 0}) == 1e-3
    assert tolerance({"num_gpus": 1}) == tolerance(engine={"num_gpus": 0.5}) == 0.1
    assert tolerance({"dtype": "bfloat16"}) == tolerance(engine={"dtype": "bfloat16"}) == 0.1
    assert tolerance({"num_gpus": 1, "dtype": "float32"}, {"num_gpus": 1, "dtype": "float32"}) == 1e-3
    assert tolerance({"num_gpus": 1, "device": "cpu"}) == 1e-3
    assert tolerance(engine={"path": "x-fp8"}) == 0.1


@pytest.mark.parametrize("engine", [{"path": "x-fp8", "replicas": 2}, {"sleep": True}])
def test_an_engine_with_other_weights_or_asleep_scores_nothing_for_the_learners(engine):
    def base(**logprobs):
        return BaseModelConfig(name="m", path="x", engine=engine, logprobs=logprobs)

    assert base().num_scoring_engines == base(mode="learner").num_scoring_engines == 0
    assert BaseModelConfig(name="m", path="x", engine={"replicas": 2}).num_scoring_engines == 2
    for mode in ("shared", "engine"):
        with pytest.raises(ValidationError, match="auto or learner"):
            base(mode=mode)


def test_the_limits_of_lora_settings_are_the_base_models_own_unless_they_are_wider():
    plain = BaseModelConfig(name="m", path="x")
    assert plain.largest_lora == plain.lora
    settings = {"name": "m", "path": "x", "lora": {"r": 4, "target_modules": ["q_proj"]}}
    wider = BaseModelConfig.model_validate(settings | {"lora_limits": {"max_r": 16, "target_modules": ["v_proj"]}})
    assert (wider.largest_lora.r, wider.largest_lora.target_modules) == (16, ("q_proj", "v_proj"))
    for lora in (
        LoraSettings(r=16, target_modules=("v_proj",)),
        LoraSettings(r=1, target_modules=("q_proj", "v_proj")),
    ):
        wider.check_lora(lora)
    for lora, field, limit in (
        (LoraSettings(r=17, target_modules=("q_proj",)), "r", "above 16"),
        (LoraSettings(r=4, target_modules=("o_proj",)), "target_modules", "o_proj can't be adapted"),
    ):
        with pytest.raises(LoraLimitError, match=limit) as raised:
            wider.check_lora(lora)
        assert raised.value.field == field
    for limits, said in (({"max_r": 3}, "below lora.r 4"), ({"target_modules": ["lm_head"]}, "lm_head")):
        with pytest.raises(ValueError, match=said):
            BaseModelConfig.model_validate(settings | {"lora_limits": limits})
