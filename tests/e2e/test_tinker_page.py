"""The lines of docs/tinker.md and of the start page, run as they are shown against the running service."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PAGE = (ROOT / "docs/tinker.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
[LOOP] = [block for language, block in BLOCKS if language == "python"]
SHELL = [block for language, block in BLOCKS if not language and "pip install" not in block]
SNIPPETS = (ROOT / "serve/web/src/views/start/snippets.ts").read_text()
DEADLINE_S = 240


@pytest.fixture
def run(service, tmp_path):
    """Run a program in an empty directory, with the environment that the page sets. Return its output."""

    def run(command, text):
        variables = {"TINKER_BASE_URL": service.url, "TINKER_API_KEY": f"tml-{service.key}", "HF_HUB_OFFLINE": "1"}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, **variables, "PATH": path}
        done = subprocess.run(
            command, input=text, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_the_loop_learns_its_answer_and_its_state_is_downloaded(run, tmp_path, service):
    save = '\npath = training.save_state("final").result().path\nprint(path)\n'
    save += 'print(training.save_weights_for_sampler("final").result().path)\nservice.close'
    output = run([sys.executable, "-"], LOOP.replace("\nservice.close", save)).splitlines()
    losses = [float(line) for line in output[:30]]
    assert losses[-1] < losses[0] / 2
    assert "Paris" in output[30]
    path = output[-2]
    run_id = path.removeprefix("tinker://").partition("/")[0]
    for block in SHELL:
        commands = block.replace("tinker://RUN/weights/final", path)
        run(["bash", "-e"], f"RUN={run_id}\n{commands}")
    [folder] = tmp_path.glob("*_weights_final")
    assert (folder / "adapter_model.safetensors").read_bytes() == (tmp_path / "adapter_model.safetensors").read_bytes()
    tokenizer = (
        "from transformers import AutoTokenizer; print(AutoTokenizer.from_pretrained('tandem/tiny')('x').input_ids)"
    )
    assert run([sys.executable, "-"], tokenizer).startswith("[")


def test_the_lines_of_the_start_page_train_and_sample(run, service):
    code = re.search(r'label: "tinker".*?=> `(.*?)`,\n  }', SNIPPETS, re.DOTALL)[1]
    values = {"url": service.url, "`tml-${key}`": f"tml-{service.key}", "baseModel": "tandem/tiny"}
    values["QUESTION"] = "Which is the largest: 3, 17 or 8?"
    for name, value in values.items():
        code = code.replace(f"${{text({name})}}", repr(value))
    assert "${" not in code
    output = run([sys.executable, "-"], code).splitlines()
    assert float(output[4]) < float(output[0])
