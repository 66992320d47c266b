"""An engine whose model is split over two processes, on real vLLM: as exact as one process, and as surely ended.

It serves weights of its own (`engine.path`): those of the tiny model rounded to 8 bits, without a tokenizer.
"""

from __future__ import annotations

import json
import os
import shutil
import signal

import psutil
import pytest
import ray
import torch
from engine_client import ask, core_of, start_engine
from policy_reference import PolicyReference, sampled_tokens, write_adapter
from safetensors.torch import load_file, save_file
from waiting import wait_until

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import EngineConfig
from tandem.rl.settings import LoraSettings
from tandem.rl.version_probe import VersionProbe

CONFIG = EngineConfig(tensor_parallel_size=2, max_num_seqs=8, kv_cache_memory_bytes=1 << 20)
PROBE = [20, 300, 77, 41, 200, 33, 8, 450, 61, 99, 123, 321] * 2
DIGESTS = [f"{k:064x}" for k in range(3)]  # the first is the zero adapter
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def artifacts(tiny_model, tmp_path_factory):
    artifacts = Artifacts(str(tmp_path_factory.mktemp("artifacts")))
    for seed, digest in enumerate(DIGESTS):
        write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed, scale=0.05 if seed else 0.0)
    return artifacts


@pytest.fixture(scope="module")
def rounded(tiny_model, tmp_path_factory):
    """The directory of the tiny model with the weights of its layers rounded to 8 bits."""
    directory = tmp_path_factory.mktemp("rounded")
    weights = load_file(tiny_model / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name:
            scale = weight.float().abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
            weights[name] = ((weight / scale).to(torch.float8_e4m3fn).float() * scale).to(weight.dtype)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(tiny_model / "config.json", directory)
    return directory


@pytest.fixture(scope="module")
def engine(ray_local, tiny_model, rounded, artifacts):
    config = CONFIG.model_copy(update={"path": str(rounded)})
    arguments = config, str(tiny_model), "tiny", artifacts.pull_checkpoint, 256, LoraSettings()
    actor, address = start_engine(tiny_model, 64, *arguments)
    yield actor, address
    ray.kill(actor)


@pytest.fixture(scope="module")
def reference(rounded, artifacts):
    return PolicyReference(rounded, {digest: artifacts.checkpoints_dir / digest for digest in DIGESTS})


def test_versions_mixed_in_a_batch_sample_and_score_as_on_one_process(engine, reference):
    actor, address = engine
    sequences = [torch.randint(8, 500, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (200, 31, 2)]
    options = {"messages": [{"role": "user", "content": "3, 17 or 8?"}], "n": 2, "max_tokens": 64, "ignore_eos": True}
    options |= {"logprobs": True, "return_token_ids": True}
    chats = [ask(address, digest, options) for digest in DIGESTS]
    scores = [actor.score.remote(sequences, digest) for digest in DIGESTS]
    for digest, chat, scored in zip(DIGESTS, chats, scores, strict=True):
        completion = chat.finish().json()
        for choice in completion["choices"]:
            ids, logprobs = sampled_tokens(choice)
            prompt = completion["prompt_token_ids"]
            expected = reference.logprobs(digest, prompt + ids)[len(prompt) - 1 :]
            torch.testing.assert_close(logprobs, expected, rtol=0, atol=TOLERANCE)
        for tokens, logprobs in zip(sequences, ray.get(scored), strict=True):
            expected = reference.logprobs(digest, tokens)
            torch.testing.assert_close(torch.tensor(logprobs[1:]), expected, rtol=0, atol=TOLERANCE)


def test_a_version_of_learners_with_unrounded_weights_is_served(engine, tiny_model, artifacts):
    learner = PolicyReference(tiny_model, {DIGESTS[1]: artifacts.checkpoints_dir / DIGESTS[1]})
    probe = VersionProbe(PROBE, learner.logprobs(DIGESTS[1], PROBE).tolist(), "torch.float32")
    digest = "a" * 64
    shutil.copytree(artifacts.checkpoints_dir / DIGESTS[1], artifacts.checkpoints_dir / digest)
    manifest = {"metadata": {"probe": probe.to_json()}}
    (artifacts.checkpoints_dir / digest / "manifest.json").write_text(json.dumps(manifest))
    report = ray.get(engine[0].check_version.remote(digest))
    assert report["is_right"] and report["max"] > 1e-3, "more than float32's tolerance"


def test_all_trained_modules_are_adapted_in_each_process(engine):
    """vLLM fuses q_proj, k_proj and v_proj, and reports them apart."""
    adapted = ray.get(engine[0]._call_workers.remote("adapted_modules"))
    assert len(adapted) == 2
    assert all(set(LoraSettings().target_modules) < set(of_process) for of_process in adapted)


def has_ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_killed_replica_leaves_no_process_behind_not_even_a_stopped_one(engine):
    """The last test: the engine is gone."""
    core = core_of(engine[0])
    workers = core.children(recursive=True)
    assert len(workers) == 2
    replica = psutil.Process(ray.get(engine[0].__ray_call__.remote(lambda _: os.getpid())))
    workers[1].send_signal(signal.SIGSTOP)
    replica.send_signal(signal.SIGKILL)
    for process in (core, *workers):
        wait_until(lambda process=process: has_ended(process))
