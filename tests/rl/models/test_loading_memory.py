"""Loading a base model takes the main memory of the weights that stay there, and little more on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import save_model
from transformers import AutoConfig

LOAD = """
import json, sys, threading
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tandem.rl.models.base_config import read_config
from tandem.rl.models.base_weights import load_model
from tandem.rl.models.sharding import Shards

big, little, folder = sys.argv[1:]


def anonymous():
    \"\"\"Return the bytes of this process, without the pages of files that it maps.\"\"\"
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def load(rank, case, device, dtype, size):
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    shards = None
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
        shards = Shards(dist.group.WORLD, cpu)
    load_model(little, read_config(little), torch.float32, "sdpa", cpu, shards)  # imports the family
    before, peak, is_over = anonymous(), [0], threading.Event()

    def watch():
        while not is_over.wait(0.001):
            peak[0] = max(peak[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    model = load_model(big, read_config(big), dtype, "sdpa", torch.device(device), shards)
    is_over.set()
    watcher.join()
    found = {"peak": peak[0] - before, "held": anonymous() - before}
    Path(folder, f"{case}{rank}.json").write_text(json.dumps(found))


for case, *args in (
    ("half", "cpu", torch.bfloat16, 1), ("elsewhere", "meta", torch.float32, 1), ("shared", "cpu", torch.float32, 2)
):
    mp.start_processes(load, (case, *args), args[-1], start_method="fork")
"""
LAYERS = 12
SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
}
WEIGHTS = 4 * LAYERS * (4 * 512 * 512 + 3 * 512 * 2048)
"""Bytes of the layers' matrices in float32, 201 million; the embedding has less than one of them."""
LARGEST = 4 * 512 * 2048
OTHER = 25e6
"""Bytes for objects, and for memory that the allocator keeps."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Return the bytes at the peak and in the end, for each way to load a model whose files are float32."""
    folder = tmp_path_factory.mktemp("loads")
    big = save_model(folder / "big", num_hidden_layers=LAYERS, **SHAPE)
    little = save_model(folder / "little", num_hidden_layers=1)
    assert AutoConfig.from_pretrained(big).vocab_size < 2048
    subprocess.run([sys.executable, "-c", LOAD, str(big), str(little), str(folder)], check=True)
    return {file.stem: json.loads(file.read_text()) for file in Path(folder).glob("*.json")}


def test_weights_on_the_cpu_are_there_once_in_their_dtype(found: dict[str, dict[str, int]]) -> None:
    half = found["half0"]
    assert 0.8 * WEIGHTS / 2 < half["held"]
    assert half["peak"] < WEIGHTS / 2 + 2 * LARGEST + OTHER


def test_weights_for_a_device_pass_through_the_main_memory_one_by_one(found: dict[str, dict[str, int]]) -> None:
    """The device is torch's meta device: no GPU is needed to see what stays in main memory."""
    assert found["elsewhere0"]["peak"] < 0.1 * WEIGHTS + OTHER


def test_a_learner_that_shares_the_weights_never_has_all_of_them(found: dict[str, dict[str, int]]) -> None:
    for rank in (0, 1):
        shared = found[f"shared{rank}"]
        assert 0.8 * WEIGHTS / 2 < shared["held"]
        assert shared["peak"] < WEIGHTS / 2 + 2 * LARGEST + OTHER
