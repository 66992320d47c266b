"""deploy/Dockerfile, as far as it can be tested without Docker."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from paths import ROOT

FILE = ROOT / "deploy/Dockerfile"
TEXT = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", FILE.read_text(), flags=re.MULTILINE))
STEPS = re.findall(r"^([A-Z]+)\s+(.*)$", TEXT, re.MULTILINE)
HADOLINT = Path(sys.executable).with_name("hadolint")


def arguments(step):
    return [value for name, value in STEPS if name == step]


def lint(file):
    return subprocess.run([HADOLINT, file], capture_output=True, text=True, timeout=300)


def test_hadolint_finds_nothing():
    found = lint(FILE)
    assert found.returncode == 0, found.stdout


def test_hadolint_finds_a_mistake(tmp_path):
    broken = tmp_path / "Dockerfile"
    broken.write_text(FILE.read_text().replace("WORKDIR /opt/tandem", "RUN cd /opt", 1))
    assert lint(broken).returncode != 0


def test_copied_files_exist_and_are_sent_to_the_builder():
    ignored = (FILE.parent / "Dockerfile.dockerignore").read_text().split()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for copied in arguments("COPY"):
        if copied.startswith("--from"):
            continue
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists() and source.split("/")[0] in sent, source


@pytest.mark.parametrize("script", arguments("RUN"))
def test_its_commands_are_valid_shell(script):
    assert subprocess.run(["sh", "-n"], input=script, text=True, timeout=300).returncode == 0


def test_it_installs_the_declared_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [environment] = [value for value in arguments("ENV") if "EXTRAS" in value]
    given = dict(word.split("=", 1) for word in environment.split())
    assert {*given["EXTRAS"].split(","), "cpu", "gpu"} <= set(project["optional-dependencies"])
    install = (ROOT / "scripts/install.sh").read_text()
    assert all(re.search(rf"\$\{{?{name}\b", install) for name in given)  # the script reads each variable
    assert given["CONSTRAINTS"] == "requirements/constraints-${EXTRA}.txt"
    for extra in ("cpu", "gpu"):
        assert (ROOT / "requirements" / f"constraints-{extra}.txt").is_file()
    [image] = [value.partition("=")[2] for value in arguments("ARG") if value.startswith("PYTHON_IMAGE")]
    assert given["PYTHON"] in ("python3.11", "python3.12") and given["PYTHON"][6:] in image


def test_user_and_model_folder_agree_with_the_manifests():
    pod = yaml.safe_load((ROOT / "deploy/kubernetes/cpu/raycluster.yaml").read_text())["spec"]["headGroupSpec"]
    [user] = arguments("USER")
    assert int(user) == pod["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"useradd --uid {user}" in TEXT
    mounts = {one["mountPath"] for one in pod["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert "HF_HOME=/models" in TEXT and "/models" in mounts


def test_login_shells_find_its_programs(tmp_path):
    """`ray up` and some versions of KubeRay run commands in login shells, which reset PATH."""
    [script] = [script for script in arguments("RUN") if "profile.d" in script]
    line = next(part for part in script.split("&&") if "profile.d" in part).replace("/etc/profile.d", str(tmp_path))
    subprocess.run(["sh", "-c", line], check=True, timeout=300)
    profile = (tmp_path / "tandem.sh").read_text()
    shown = subprocess.run(
        ["sh", "-c", f"PATH=/usr/bin:/bin\n{profile}\necho $PATH"], capture_output=True, text=True, env=dict(os.environ)
    )
    assert shown.stdout.split(":")[0] == "/opt/tandem/.venv/bin"


def test_kuberays_probes_find_wget():
    assert re.search(r"apt-get install [^&]*\bwget\b", TEXT)
