"""examples/one_step.py runs unchanged."""

import re
import subprocess
import sys

from paths import ROOT

from tandem.rl.checkpoints import read_checkpoint


def test_one_step_makes_the_rewarded_answers_more_likely(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "one_step.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(float, re.findall(r"(-[\d.]+) (?:before|after)", done.stdout))
    assert after > before + 1e-3
    [checkpoint] = tmp_path.iterdir()
    state = read_checkpoint(checkpoint)
    assert any(tensor.any() for name, tensor in state.adapter.items() if "lora_B" in name) and state.optimizer
