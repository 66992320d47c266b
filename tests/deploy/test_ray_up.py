"""Ray's cluster launcher accepts deploy/ray-cluster.yaml."""

import re

import jsonschema
import pytest
import yaml
from click.testing import CliRunner
from paths import ROOT
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start

FILE = ROOT / "deploy/ray-cluster.yaml"
CONFIG = yaml.safe_load(FILE.read_text())


def test_ray_accepts_it():
    prepared = prepare_config(CONFIG)
    validate_config(prepared)
    assert prepared["max_workers"] == len(CONFIG["provider"]["worker_ips"])


@pytest.mark.parametrize("wrong", [{"idle_timeout": 5}, {"docker": {"images": "x"}}, {"upscaling_speed": "fast"}])
def test_ray_rejects_a_wrong_field(wrong):
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(CONFIG | wrong))


@pytest.mark.parametrize("command", CONFIG["head_start_ray_commands"][1:] + CONFIG["worker_start_ray_commands"][1:])
def test_ray_start_knows_its_options(command):
    words = command.split()
    assert words[:2] == ["ray", "start"]
    known = {option for parameter in start.params for option in parameter.opts}
    assert {word.partition("=")[0] for word in words[2:]} <= known
    assert CliRunner().invoke(start, ["--no-such-option"]).exit_code == 2  # the result for an unknown option


def test_ray_requires_a_token_that_is_not_in_the_file():
    text = FILE.read_text()
    assert "--env-file=/etc/tandem/environment" in CONFIG["docker"]["run_options"]
    named = set(re.findall(r"^#   ([A-Z_0-9]+)=", text, re.MULTILINE))
    assert {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "TANDEM_STORE_URL", "AWS_SECRET_ACCESS_KEY"} <= named
    assert "RAY_AUTH_MODE=token" in text and not re.search(r"TOKEN=\w{8,}", text)
    assert "--dashboard-host=0.0.0.0" not in text
