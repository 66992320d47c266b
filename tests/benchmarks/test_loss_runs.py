"""Runs: equal but for their loss, with the configured lag, and the same with and without interruption."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from loss_comparison import replay as replaying
from loss_comparison.configurations import configuration
from loss_comparison.job import Trainer
from loss_comparison.results import Results
from loss_comparison.settings import RunRequest
from loss_comparison.training_run import Bench, train, training_config
from paths import ROOT

from tandem.rl.batch import build_sequences
from tandem.rl.packing import pack

PROGRAM = ROOT / "benchmarks" / "compare_losses.py"


def request(settings, name="cispo", seed=0, lag=0):
    return RunRequest.of("training", configuration(name), seed, lag, settings)


def without_times(result):
    return {key: value for key, value in result.items() if key not in ("cpu_seconds", "wall_seconds", "made_by")}


def test_the_same_request_gives_the_same_run_and_another_loss_begins_alike(small):
    first, again, other = train(request(small)), train(request(small)), train(request(small, "ppo-eps-0.05"))
    assert without_times(first) == without_times(again)
    assert other["curve"][0] == first["curve"][0]
    assert other["curve"][1]["reward"] == first["curve"][1]["reward"]  # the same rollouts, by the same base model
    assert other["curve"][1:] != first["curve"][1:]


def test_with_a_lag_an_older_version_samples(small):
    curve = train(request(small, lag=1))["curve"]
    assert [record.get("sampled_versions") for record in curve] == [None, [0], [0], [1]]
    assert train(request(small, lag=0))["curve"][3]["sampled_versions"] == [2]


def test_the_tokens_of_a_lag_have_the_logprobs_of_the_older_version(small):
    bench, config = Bench.of(small, 0), training_config(configuration("cispo"), small)
    for batch in range(3):
        bench.trainer.train(bench.groups(small, 0, batch, 0), config, str(batch))
    (*rows,) = _rows(bench, bench.groups(small, 0, 3, lag=2), config)
    sampled = torch.cat([row.sampling_logprobs[row.loss_mask] for row in rows])
    assert (sampled - _scored(bench.trainer, 1, rows)).abs().max() < 1e-4
    assert (sampled - _scored(bench.trainer, 3, rows)).abs().max() > 1e-2


def _rows(bench, groups, config):
    from tandem.rl.tokens.tokenizing import ChatTokenizer

    sequences = build_sequences(groups, ChatTokenizer(bench.sampler.tokenizer), config)
    return pack([sequence for of_group in sequences for sequence in of_group], 512)


def _scored(trainer: Trainer, version: int, rows):
    trainer.policy.load_adapter_state(trainer.versions[version])
    return torch.cat([score[row.loss_mask] for score, row in zip(trainer.learner.score(rows), rows, strict=True)])


def test_a_replay_has_every_loss_on_the_same_batches(small, tmp_path):
    stored = replaying.stored_batches(tmp_path, small, 0, 1, lambda what: None)
    again = replaying.stored_batches(tmp_path, small, 0, 1, lambda what: pytest.fail("they are stored already"))
    assert again.digest == stored.digest
    found = {}
    for name in ("cispo", "ppo", "ppo-eps-0.05"):
        wanted = RunRequest.of("replay", configuration(name), 0, 1, small, replay_digest=stored.digest)
        found[name] = replaying.replay(wanted, stored)
    assert len({json.dumps(result["digests"]) for result in found.values()}) == 1
    rewards = [[record.get("reward") for record in result["curve"]] for result in found.values()]
    assert rewards[0] == rewards[1] == rewards[2]
    cosines = {  # not of a batch with nothing to learn, which there may be: processors differ in what is sampled
        name: [at["cosine_to_baseline"] for at in stored_policies(result) if "cosine_to_baseline" in at]
        for name, result in found.items()
    }
    assert cosines["cispo"] == pytest.approx([1] * len(cosines["cispo"]))
    # Where the sampler is the policy every ratio is 1, and PPO's gradient is CISPO's. Later, clipping takes tokens out.
    assert cosines["ppo"][0] == pytest.approx(1, abs=1e-4)
    assert min(cosines["ppo-eps-0.05"][1:]) < 0.999


def stored_policies(result):
    return [record["at_stored_policy"] for record in result["curve"][1:]]


def test_stored_batches_that_were_changed_are_rejected(small, tmp_path):
    stored = replaying.stored_batches(tmp_path, small, 0, 0, lambda what: None)
    (file,) = tmp_path.glob("replay-*/batch-001.json")
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"batch-001\.json"):
        replaying.stored_batches(tmp_path, small, 0, 0, lambda what: None)
    wanted = RunRequest.of("replay", configuration("ppo"), 0, 0, small, replay_digest="another")
    with pytest.raises(ValueError, match="digest"):
        replaying.replay(wanted, stored)


def test_a_changed_setting_has_results_of_its_own(small, tmp_path):
    results, own = Results(tmp_path), request(small)
    results.put(own, {"fingerprint": own.fingerprint, "curve": []})
    assert results.get(own)["curve"] == []
    assert results.get(request(small.model_copy(update={"learning_rate": 0.5}))) is None
    assert results.get(own.model_copy(update={"overrides": {"epsilon": 0.5}})) is None
    assert results.get(request(small, lag=1)) is None


def test_a_killed_comparison_resumes_and_ends_like_an_undisturbed_one(small, tmp_path, monkeypatch):
    import compare_losses

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = ["--configurations", "cispo", "ppo", "--seeds", "1", "--lags", "0", "1", "--no-replay"]
    for name in small.model_fields_set:
        options += ["--" + name.replace("_", "-"), str(getattr(small, name))]

    def made(name):
        return {path.name: json.loads(path.read_bytes()) for path in (tmp_path / name / "runs").glob("*.json")}

    command = [sys.executable, str(PROGRAM), *options, "--output", str(tmp_path / "killed")]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 300
    while not made("killed"):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "runs").glob("*.json")}
    assert 1 <= len(before) < 4

    compare_losses.main([*options, "--output", str(tmp_path / "killed")])
    compare_losses.main([*options, "--output", str(tmp_path / "undisturbed")])
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    killed, undisturbed = made("killed"), made("undisturbed")
    assert len(killed) == 4 and killed.keys() == undisturbed.keys()
    for name, result in killed.items():
        assert without_times(result) == without_times(undisturbed[name])
    assert "4 of 4" not in (tmp_path / "killed" / "report.md").read_text()  # nothing is missing, so nothing is said
