"""The engine on real vLLM, in a Ray actor as in the service, against transformers and PEFT.

One engine serves all tests of this file; the last test ends it. Its KV cache holds 512 tokens, two of the longest
sequences, so that requests wait, are prefilled in chunks, preempt one another and share prefixes all the time.
"""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from engine_client import REQUESTED, Answer, Asked, ask, core_of, start_engine
from policy_reference import PolicyReference, sampled_tokens, write_adapter
from protocol_answers import request_to, said_in
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.metrics.usage import Charged, Used
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, COUNT_TOKENS, RESPONSES
from tandem.cluster.engine.requests.protocols import MESSAGES as MESSAGES_PATH
from tandem.cluster.engine.server import EngineAddress
from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError, VersionNotFiniteError, WrongVersionError
from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG, MANIFEST
from tandem.rl.checkpoints import LearnerState, seal_checkpoint
from tandem.rl.errors import CheckpointError
from tandem.rl.settings import LoraSettings
from tandem.rl.tiny.corpus import ADD_TOOL
from tandem.rl.version_probe import BASE, PREVIOUS, VersionProbe

MAX_MODEL_LEN = 256
CONFIG = EngineConfig(max_num_seqs=32, max_loras=3, max_cpu_loras=4, kv_cache_memory_bytes=1 << 20)
VERSIONS = [f"{k:064x}" for k in range(7)]  # the first is the zero adapter
OTHER_SETTINGS = {  # than the engine's, which are the largest that a model may have
    2: LoraSettings(r=2, alpha=30, target_modules=("q_proj", "v_proj", "up_proj")),
    3: LoraSettings(r=5, alpha=20, target_modules=("down_proj", "o_proj")),
}
TOLERANCE = 1e-4
# Longer than two blocks of the prefix cache, and the same under every version.
MESSAGES = [{"role": "user", "content": "Which of these numbers is the largest: 3, 17, 8, 41, 5, 22 or 39? " * 2}]
MANY = 384
PLUS = {"messages": [{"role": "user", "content": "What is 3 plus 4?"}], "temperature": 0, "max_tokens": 48}
HELLO = PLUS | {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}]}
IN_EACH_PROTOCOL = {
    "an answer": HELLO,
    "a limit": HELLO | {"max_tokens": 3},
    "a stop sequence": HELLO | {"stop": ["help"]},
    "text like a call": PLUS,  # no tools are offered
    "a call": PLUS | {"tools": [ADD_TOOL]},
    "a forced call": PLUS | {"tools": [ADD_TOOL], "tool_choice": "required"},
    "no call": PLUS | {"tools": [ADD_TOOL], "tool_choice": "none"},
}
IN_THREE = (CHAT, RESPONSES, MESSAGES_PATH)
LONG = {"messages": MESSAGES, "n": MANY, "ignore_eos": True}  # a minute of work


class Client:
    """The engine actor, for tests that aren't asynchronous."""

    def __init__(self, actor: Any, address: EngineAddress):
        self.actor, self.address = actor, address

    def start(self, digest: str, body: Any, path: str = CHAT) -> Asked:
        return ask(self.address, digest, body, path)

    def finish(self, asked: Asked) -> Answer:
        return asked.finish()

    def ask(self, digest: str, body: Any, path: str = CHAT) -> Answer:
        return self.finish(self.start(digest, body, path))

    def chat(self, digest: str, **options: Any) -> dict[str, Any]:
        answer = self.ask(digest, {"messages": MESSAGES, "logprobs": True, "return_token_ids": True} | options)
        assert answer.status == 200, answer.body
        return answer.json()

    def score(self, sequences: list[list[int]], digest: str) -> list[list[float]]:
        return ray.get(self.actor.score.remote(sequences, digest))

    def load(self) -> dict[str, Any]:
        return ray.get(self.actor.load.remote())

    def wait_until_busy(self, num_unfinished: int) -> None:
        """Wait for `num_unfinished` requests. Pass less than the number sent: some may end before the first poll."""
        deadline = time.monotonic() + 300
        while self.load()["num_unfinished"] < num_unfinished:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def wait_until_idle(self, but_for: int = 0) -> None:
        """Wait until aborted work has ended. The deadline is shorter than the work would take without the abort."""
        deadline = time.monotonic() + 40
        while (num_unfinished := self.load()["num_unfinished"]) > but_for:
            assert time.monotonic() < deadline, f"{num_unfinished} requests are unfinished"
            time.sleep(0.01)

    def core_process(self) -> psutil.Process:
        return core_of(self.actor)


@pytest.fixture(scope="module")
def artifacts(tiny_model, tmp_path_factory) -> Artifacts:
    artifacts = Artifacts(str(tmp_path_factory.mktemp("artifacts")))
    for seed, digest in enumerate(VERSIONS):
        scale, lora = 0.05 if seed else 0.0, OTHER_SETTINGS.get(seed)
        write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed, scale, lora)
    return artifacts


@pytest.fixture(scope="module")
def reference(tiny_model, artifacts) -> PolicyReference:
    return PolicyReference(tiny_model, {digest: artifacts.checkpoints_dir / digest for digest in VERSIONS})


@pytest.fixture(scope="module")
def client(ray_local, tiny_model, artifacts) -> Iterator[Client]:
    arguments = CONFIG, str(tiny_model), "tiny", artifacts.pull_checkpoint, MAX_MODEL_LEN, LoraSettings()
    actor, address = start_engine(tiny_model, 512, *arguments)
    yield Client(actor, address)
    ray.get(actor.stop.remote())
    ray.kill(actor)


def assert_choices_follow_policy(completion: dict[str, Any], reference: PolicyReference, digest: str) -> None:
    """Assert that there is one logprob per sampled token, and that it equals the policy's."""
    prompt = completion["prompt_token_ids"]
    for choice in completion["choices"]:
        ids, logprobs = sampled_tokens(choice)
        assert ids == choice["token_ids"]
        expected = reference.logprobs(digest, prompt + ids)[len(prompt) - 1 :]
        torch.testing.assert_close(logprobs, expected, rtol=0, atol=TOLERANCE)


def greedy(client: Client, digest: str) -> dict[str, Any]:
    return client.chat(digest, temperature=0, max_tokens=24, ignore_eos=True)


def assert_same_answer(first: dict[str, Any], second: dict[str, Any]) -> None:
    """Assert equal tokens, and logprobs equal up to rounding, which depends on the hits in the prefix cache."""
    (first_ids, first_logprobs), (second_ids, second_logprobs) = (
        sampled_tokens(c["choices"][0]) for c in (first, second)
    )
    assert first_ids == second_ids
    torch.testing.assert_close(first_logprobs, second_logprobs, rtol=0, atol=1e-5)


def random_sequences(num: int, seed: int) -> list[list[int]]:
    """Return `num` random sequences: of 1, 2 and MAX_MODEL_LEN tokens, the others of 200."""
    lengths = ([1, 2, MAX_MODEL_LEN] + [200] * num)[:num]
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(8, 500, (length,), generator=generator).tolist() for length in lengths]


def test_an_idle_core_has_no_threads_that_look_for_peers(client):
    """Each such thread would wake up 100 times a second."""
    core = client.core_process()
    threads = [file.read_text() for file in Path(f"/proc/{core.pid}/task").glob("*/comm")]
    assert threads and not any("gloo" in name for name in threads)


def test_a_core_is_forked_from_a_process_that_has_imported_vllm(client):
    assert any("forkserver" in word for word in client.core_process().parent().cmdline())


def test_versions_mixed_in_a_batch_sample_and_score_like_transformers_and_peft(client, reference):
    options = {"messages": MESSAGES, "logprobs": True, "return_token_ids": True, "n": 2, "max_tokens": 128}
    options |= {"ignore_eos": True}
    sequences = random_sequences(6, seed=1)
    chats = [(digest, client.start(digest, options | {"seed": k})) for digest in VERSIONS[:5] for k in range(3)]
    scores = [(digest, client.actor.score.remote(sequences, digest)) for digest in VERSIONS[:4]]
    for digest, stream in chats:
        completion = client.finish(stream).json()
        assert completion["model"] == REQUESTED
        assert len(completion["choices"]) == 2
        assert_choices_follow_policy(completion, reference, digest)
    for digest, scored in scores:
        for tokens, logprobs in zip(sequences, ray.get(scored), strict=True):
            assert len(logprobs) == len(tokens)
            assert logprobs[0] != logprobs[0]  # NaN: nothing comes before the first token
            expected = reference.logprobs(digest, tokens)
            torch.testing.assert_close(torch.tensor(logprobs[1:]), expected, rtol=0, atol=TOLERANCE)


def test_an_old_version_stays_the_same_while_new_ones_load(client, reference):
    options = {"ignore_eos": True, "logprobs": True, "return_token_ids": True}
    stream = client.start(VERSIONS[1], {"messages": MESSAGES, "n": 16, **options})
    answers = {digest: client.chat(digest, max_tokens=2) for digest in VERSIONS[4:]}
    assert client.load()["num_unfinished"] > 0  # the old version is still generating
    for digest, answer in answers.items():
        assert_choices_follow_policy(answer, reference, digest)
    assert_choices_follow_policy(client.finish(stream).json(), reference, VERSIONS[1])


def test_the_stop_token_has_its_raw_logprob_in_the_content(client, reference, tiny_model):
    eos = json.loads((tiny_model / "generation_config.json").read_text())["eos_token_id"]
    completion = client.chat(
        VERSIONS[1], max_tokens=5, logit_bias={str(eos): 100}
    )  # stops at once, whatever the policy
    (choice,) = completion["choices"]
    assert choice["finish_reason"] == "stop"
    assert sampled_tokens(choice)[0] == [eos]
    assert_choices_follow_policy(completion, reference, VERSIONS[1])


def test_streaming_gives_the_same_tokens_in_pieces(client):
    options = {"temperature": 0, "max_tokens": 64, "ignore_eos": True, "logprobs": True}
    whole = client.chat(VERSIONS[2], **options)["choices"][0]
    answer = client.ask(VERSIONS[2], {"messages": MESSAGES, "stream": True, **options})
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = [line.removeprefix("data: ") for line in answer.body.decode().split("\n\n") if line]
    assert done == "[DONE]"
    pieces = [choice for event in events for choice in json.loads(event)["choices"]]
    assert len(pieces) > 3  # vLLM merges tokens that are generated faster than they are sent
    entries = [entry for piece in pieces if piece["logprobs"] for entry in piece["logprobs"]["content"]]
    assert [entry["token"] for entry in entries] == [entry["token"] for entry in whole["logprobs"]["content"]]
    assert "".join(piece["delta"].get("content") or "" for piece in pieces) == whole["message"]["content"]


@pytest.mark.parametrize("tool_choice", ["required", {"type": "function", "function": {"name": "pick"}}])
def test_a_forced_tool_call_is_one(client, reference, tool_choice):
    parameters = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "pick", "strict": True, "parameters": parameters}}]
    completion = client.chat(VERSIONS[1], tools=tools, tool_choice=tool_choice, max_tokens=150)
    (call,) = completion["choices"][0]["message"]["tool_calls"]
    assert call["function"]["name"] == "pick"
    assert json.loads(call["function"]["arguments"])["colour"] in ("red", "blue")
    # vLLM masks forbidden tokens before it computes logprobs, so these are at least the policy's own.
    prompt, (ids, logprobs) = completion["prompt_token_ids"], sampled_tokens(completion["choices"][0])
    assert ids == completion["choices"][0]["token_ids"]
    assert (logprobs >= reference.logprobs(VERSIONS[1], prompt + ids)[len(prompt) - 1 :] - TOLERANCE).all()


def test_a_dropped_version_loads_again_and_answers_as_before(client):
    before = greedy(client, VERSIONS[1])
    for digest in VERSIONS[2:]:
        greedy(client, digest)
    adapters = client.load()["adapters"]
    assert len(adapters) == CONFIG.max_cpu_loras
    assert VERSIONS[1] not in adapters
    assert_same_answer(greedy(client, VERSIONS[1]), before)


def test_a_loaded_version_outlives_the_deletion_of_its_checkpoint(client, artifacts, tiny_model):
    digest = "d" * 64
    write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed=9, scale=0.05)
    before = greedy(client, digest)
    artifacts.delete_checkpoint(digest)
    assert_same_answer(greedy(client, digest), before)
    for other in VERSIONS[1:6]:
        greedy(client, other)
    assert client.ask(digest, {"messages": MESSAGES}).status == 404  # unloaded, and its files are deleted


def test_a_version_that_is_not_there_is_404(client):
    answer = client.ask("e" * 64, {"messages": MESSAGES})
    assert (answer.status, answer.json()["error"]["type"]) == (404, "NotFoundError")
    with pytest.raises(AdapterUnavailableError, match="e" * 64):
        client.score([[5, 6]], "e" * 64)


def test_an_adapter_that_would_disturb_others_is_refused(client, artifacts, tiny_model):
    before = greedy(client, VERSIONS[1])
    directories = {name: artifacts.checkpoints_dir / (name * 64) for name in "bc"}
    write_adapter(tiny_model, directories["b"], seed=1, scale=0.1, lora=LoraSettings(r=64))
    shutil.copytree(artifacts.checkpoints_dir / VERSIONS[1], directories["c"])
    (directories["c"] / "adapter_model.safetensors").write_bytes(b"not safetensors")
    for name, reason in (("b", "rank 64"), ("c", "header")):
        answer = client.ask(name * 64, {"messages": MESSAGES})
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        with pytest.raises(AdapterUnavailableError, match=reason):
            client.score([[5, 6]], name * 64)
    assert_same_answer(greedy(client, VERSIONS[1]), before)


HUGE = {  # standard deviations of the B matrices
    "nan": float("nan"),
    "inf": float("inf"),
    "overflows with alpha / r": 5e37,
    "overflows in the attention": 1e20,
}
SHORT = [{"messages": [{"role": "user", "content": text}]} for text in ("Hi", "Add 3 and 4.", "One two three")]


@pytest.mark.parametrize("kind", HUGE)
def test_a_version_that_is_not_finite_is_refused_and_leaves_the_others_as_they_were(
    client, artifacts, tiny_model, kind
):
    digest = f"{list(HUGE).index(kind) + 0xA0:064x}"
    write_adapter(tiny_model, artifacts.checkpoints_dir / digest, seed=1, scale=HUGE[kind])
    before = short_answers(client, VERSIONS[1])
    for options in ({}, {"logprobs": False}, {"stream": True}):
        answer = client.ask(digest, {"messages": MESSAGES, "logprobs": True} | options)
        assert (answer.status, answer.json()["error"]["param"]) == (422, "model")
        assert "learning rate" in answer.json()["error"]["message"]
    with pytest.raises(VersionNotFiniteError):
        client.score([[5, 6]], digest)
    assert digest in ray.get(client.actor.not_finite.remote())
    assert digest not in client.load()["adapters"]
    assert short_answers(client, VERSIONS[1]) == before


def test_no_request_reads_what_a_version_that_is_not_finite_left_in_the_cache(client, artifacts, tiny_model):
    """Such a version gets past the probe here, as one could that overflows on other tokens alone."""
    broken = "f" * 64
    write_adapter(tiny_model, artifacts.checkpoints_dir / broken, seed=1, scale=1e20)
    before = [short_answers(client, version) for version in VERSIONS[:3]]

    def let_the_next_pass(engine: Any) -> None:
        async def check_logits(*_: Any) -> None:
            del engine._loader._check_logits

        engine._loader._check_logits = check_logits

    ray.get(client.actor.__ray_call__.remote(let_the_next_pass))
    for tokens in range(3, 35):  # different prompts, so that together they fill every block of the cache
        poisoned = client.start(broken, {"prompt": [tokens] * 95, "n": 2, "logprobs": tokens % 2}, COMPLETIONS)
        among = client.start(VERSIONS[tokens % 3], SHORT[0] | {"logprobs": True, "max_tokens": 4})
        assert (client.finish(poisoned).status, client.finish(among).status) == (422, 200)
    client.wait_until_idle()
    assert [short_answers(client, version) for version in VERSIONS[:3]] == before
    assert broken in ray.get(client.actor.not_finite.remote())


def short_answers(client: Client, digest: str) -> list[list[int]]:
    """Greedy completions of prompts that end early in a block of the cache."""
    answers = [client.ask(digest, body | {"temperature": 0, "logprobs": True, "max_tokens": 8}) for body in SHORT]
    assert {answer.status for answer in answers} == {200}, [answer.body[:200] for answer in answers]
    return [sampled_tokens(answer.json()["choices"][0])[0] for answer in answers]


PROBE = [20, 300, 77, 41, 200, 33, 8, 450, 61, 99, 123, 321] * 2


def publish(
    artifacts: Artifacts, reference: PolicyReference, digest: str, files_of: str, made: str, previous: str
) -> None:
    """Store the adapter of `files_of` as version `digest`, with the probe of a learner that has made `made`."""
    shutil.copytree(artifacts.checkpoints_dir / files_of, artifacts.checkpoints_dir / digest)
    own, base, before = (reference.logprobs(version, PROBE).tolist() for version in (made, VERSIONS[0], previous))
    probe = VersionProbe(PROBE, own, "torch.float32", {BASE: base, PREVIOUS: before})
    manifest = {"metadata": {"probe": probe.to_json()}}
    (artifacts.checkpoints_dir / digest / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("made", "previous"),
    [(VERSIONS[0], VERSIONS[0]), (VERSIONS[1], VERSIONS[0]), (VERSIONS[2], VERSIONS[1]), (VERSIONS[0], VERSIONS[1])],
    ids=["nothing learned", "first", "second", "unlearned"],
)
def test_a_version_that_answers_as_its_learner_is_served(client, artifacts, reference, made, previous):
    digest = f"{VERSIONS.index(made) * 10 + VERSIONS.index(previous) + 0xC0:064x}"
    publish(artifacts, reference, digest, made, made, previous)
    report = ray.get(client.actor.check_version.remote(digest))
    assert report["is_right"] and report["max"] < TOLERANCE, report
    assert_choices_follow_policy(greedy(client, digest), reference, made)


def offered_files(artifacts: Artifacts, reference: PolicyReference, digest: str) -> tuple[str, dict[str, Any]]:
    """Return the digest and the files of a version that is nowhere on disk, with the weights of another one."""
    adapter = load_file(artifacts.checkpoints_dir / digest / ADAPTER)
    config = json.loads((artifacts.checkpoints_dir / digest / ADAPTER_CONFIG).read_bytes())
    probe = VersionProbe(PROBE, reference.logprobs(digest, PROBE).tolist(), "torch.float32")
    sealed = seal_checkpoint(LearnerState(adapter), config, {"probe": probe.to_json()})
    return sealed.digest, {name: sealed.contents[name] for name in (ADAPTER, ADAPTER_CONFIG, MANIFEST)}


def test_a_version_that_is_offered_answers_before_it_can_be_fetched_and_is_gone_after_its_eviction(
    client, artifacts, reference
):
    """As a version of a job that fails after its offer: nobody asks for it, and it makes room for others."""
    digest, files = offered_files(artifacts, reference, VERSIONS[2])
    assert ray.get(client.actor.check_version.remote(digest, files))["is_right"]
    completion = client.chat(digest, max_tokens=8, ignore_eos=True)
    assert_choices_follow_policy(completion, reference, VERSIONS[2])
    for other in VERSIONS[: CONFIG.max_cpu_loras]:
        client.chat(other, max_tokens=1)
    assert digest not in client.load()["adapters"]
    assert client.ask(digest, {"messages": MESSAGES}).status == 404


def test_offered_files_that_are_not_those_of_the_version_are_not_used(client, artifacts, reference):
    digest, files = offered_files(artifacts, reference, VERSIONS[3])
    files[ADAPTER] = files[ADAPTER][:-4] + b"none"
    with pytest.raises(CheckpointError):
        ray.get(client.actor.check_version.remote(digest, files))
    assert digest not in client.load()["adapters"]


def test_a_version_without_a_probe_is_served_unchecked(client):
    assert ray.get(client.actor.check_version.remote(VERSIONS[1])) is None


@pytest.mark.parametrize(
    ("files_of", "made", "previous", "instead"),
    [
        (VERSIONS[1], VERSIONS[2], VERSIONS[1], PREVIOUS),
        (VERSIONS[0], VERSIONS[2], VERSIONS[1], BASE),
        (VERSIONS[3], VERSIONS[2], VERSIONS[1], None),
        (VERSIONS[1], VERSIONS[0], VERSIONS[1], PREVIOUS),
    ],
    ids=["stale", "not applied", "another", "not unlearned"],
)
def test_an_adapter_that_is_not_that_of_its_version_is_refused(
    client, artifacts, reference, files_of, made, previous, instead
):
    digest = f"{VERSIONS.index(files_of) * 100 + VERSIONS.index(made) * 10 + VERSIONS.index(previous) + 0xD000:064x}"
    publish(artifacts, reference, digest, files_of, made, previous)
    report = ray.get(client.actor.check_version.remote(digest))
    assert not report["is_right"] and report["max"] > 0.01 and report["answers_as"] == instead
    for _ in range(2):
        answer = client.ask(digest, {"messages": MESSAGES})
        assert answer.status == 503 and digest in answer.json()["error"]["message"]
    with pytest.raises(WrongVersionError, match=r"nats"):
        client.score([[5, 6]], digest)
    assert digest not in client.load()["adapters"]
    assert_choices_follow_policy(greedy(client, VERSIONS[1]), reference, VERSIONS[1])


def test_an_adapter_that_lacks_tensors_is_refused(client, artifacts, reference):
    digest = "c5" * 32
    publish(artifacts, reference, digest, VERSIONS[2], VERSIONS[2], VERSIONS[1])
    file = artifacts.checkpoints_dir / digest / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.0." in name}, file)
    report = ray.get(client.actor.check_version.remote(digest))
    assert not report["is_right"]


def test_a_second_load_may_repair_a_version(client, artifacts, reference):
    """The first fetch returns the files of another version, as a stale cache might."""
    digest = "c6" * 32
    publish(artifacts, reference, digest, VERSIONS[2], VERSIONS[2], VERSIONS[1])
    stale = "c7" * 32
    publish(artifacts, reference, stale, VERSIONS[1], VERSIONS[2], VERSIONS[1])

    def be_stale_once(engine: Any) -> None:
        fetch = engine._loader._fetch

        def fetch_stale(_: str) -> Path:
            engine._loader._fetch = fetch
            return fetch(stale)

        engine._loader._fetch = fetch_stale

    ray.get(client.actor.__ray_call__.remote(be_stale_once))
    assert ray.get(client.actor.check_version.remote(digest))["is_right"]
    assert_choices_follow_policy(greedy(client, digest), reference, VERSIONS[2])


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"messages": ' + b"[" * 100_000,
        {"messages": []},
        {"messages": MESSAGES, "temperature": -1},
        {"messages": MESSAGES, "temperature": float("nan")},
        {"messages": MESSAGES, "max_tokens": 0},
        {"messages": MESSAGES, "max_tokens": MAX_MODEL_LEN + 1},
        {"messages": MESSAGES * 30},
        {"messages": MESSAGES, "n": 100_000},
        {"messages": MESSAGES, "top_k": 2**70},
        {"messages": MESSAGES, "logit_bias": {"99999": 1}},
        {"messages": MESSAGES, "stop": ["\ud800"]},
        {"messages": MESSAGES, "structured_outputs": {"regex": "(("}},
        {"messages": MESSAGES, "tools": [{}]},
    ],
    ids=lambda body: str(body)[-40:],
)
def test_a_bad_request_is_answered_and_harms_nothing(client, body):
    answer = client.ask(VERSIONS[1], body)
    assert answer.status in (400, 422), answer.body
    assert answer.json()["error"]["message"]
    assert client.load()["num_unfinished"] == 0


@pytest.mark.parametrize("prompt", [[99_999], [-1], []])
def test_token_ids_outside_the_vocabulary_are_refused(client, prompt):
    assert client.ask(VERSIONS[1], {"prompt": prompt, "max_tokens": 1}, COMPLETIONS).status == 400


def test_only_completions_can_be_asked_for(client):
    assert client.ask(VERSIONS[1], {}, "/scale_elastic_ep").status == 404


@pytest.mark.parametrize("tokens", [[], [5] * (MAX_MODEL_LEN + 1), [99_999], [-1]])
def test_sequences_that_cannot_be_scored_are_refused(client, tokens):
    with pytest.raises(ValueError, match="Sequence 1"):
        client.score([[5, 6], tokens], VERSIONS[1])


@pytest.mark.parametrize("path", [RESPONSES, MESSAGES_PATH])
@pytest.mark.parametrize("chat", IN_EACH_PROTOCOL.values(), ids=IN_EACH_PROTOCOL)
def test_other_protocols_sample_the_tokens_of_chat(client, path, chat):
    def ask(path, is_stream=False):
        answer = client.ask(VERSIONS[0], request_to(path, chat, is_stream), path)
        assert answer.status == 200, answer.body
        return said_in(path, answer.body, is_stream)

    of_chat = ask(CHAT)
    for said in (ask(path), ask(path, is_stream=True)):
        assert replace(said, logprobs=[]) == replace(of_chat, logprobs=[])
        assert said.logprobs == pytest.approx(of_chat.logprobs, abs=1e-5)
        assert said.marks[1:] == (said.marks[1], REQUESTED)


def test_a_last_message_of_the_assistant_is_continued(client, tiny_model):
    ask = {"max_tokens": 8, "temperature": 0}
    turns = [*PLUS["messages"], {"role": "assistant", "content": "3 plus 4 is"}]
    message = client.ask(VERSIONS[0], {"messages": turns, **ask}, MESSAGES_PATH).json()
    text = AutoTokenizer.from_pretrained(tiny_model).decode(message["prompt_token_ids"])
    assert text.endswith("<|im_start|>assistant\n3 plus 4 is")
    count = client.ask(VERSIONS[0], {"messages": turns}, COUNT_TOKENS).json()
    assert count["input_tokens"] == len(message["prompt_token_ids"]) == message["usage"]["input_tokens"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_who_leaves_ends_the_generation(client, stream):
    answer = client.start(VERSIONS[1], LONG | {"stream": stream})
    client.wait_until_busy(MANY // 2)
    if stream:
        assert answer.response.status == 200
        assert answer.response.readline().startswith(b"data: ")
    answer.cancel()
    client.wait_until_idle()


def test_scoring_that_is_abandoned_ends(client):
    answering = client.start(VERSIONS[1], LONG)  # chat has priority, so nothing is scored for a minute
    scored = client.actor.score.remote(random_sequences(400, seed=2), VERSIONS[1])
    client.wait_until_busy(MANY + 300)
    ray.cancel(scored)
    client.wait_until_idle(but_for=MANY)
    answering.cancel()
    client.wait_until_idle()


def test_chat_goes_before_scoring(client):
    scored = client.actor.score.remote(random_sequences(2000, seed=3), VERSIONS[1])
    client.wait_until_busy(1500)
    client.chat(VERSIONS[1], max_tokens=4)
    assert client.load()["num_unfinished"] > 100  # the chat didn't wait for the scoring
    ray.cancel(scored)
    client.wait_until_idle()


def usage_of(path: str, content: bytes, is_stream: bool) -> tuple[int, int, int]:
    """Return the tokens of prompt, prefix cache and answer, as a protocol's answer says them."""
    answers = (
        [json.loads(content)]
        if not is_stream
        else [
            json.loads(line.removeprefix("data:"))
            for line in content.decode().splitlines()
            if line.startswith("data:") and "[DONE]" not in line
        ]
    )
    found = [one.get("response", one).get("usage") for one in answers]
    usage: dict[str, Any] = {}
    for one in filter(None, [answers[0].get("message", {}).get("usage"), *found]):
        usage |= one
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    cached = (usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}).get("cached_tokens")
    return prompt, cached, usage.get("completion_tokens", usage.get("output_tokens"))


def test_tokens_are_counted_for_who_asked_whatever_the_protocol_and_the_end(client):
    client.wait_until_idle()
    batches, busy_s = ray.get(client.actor.take_usage.remote(0))
    asked: dict[Charged, tuple[int, int]] = {}
    kind = {"role": "system", "content": "Be kind. " * 20}  # longer than a block of the cache, whose size may be 128
    body = HELLO | {"messages": [kind, *HELLO["messages"][1:]], "max_tokens": 9}
    options = {"stream_options": {"include_usage": True}}
    plain = {"prompt": [5, 6, 7, 8], "max_tokens": 6, "ignore_eos": True}
    chat_like = [(path, request_to(path, body, stream), stream) for path in IN_THREE for stream in (False, True)]
    texts = [(COMPLETIONS, plain | {"stream": stream}, stream) for stream in (False, True)]
    requests = chat_like + texts
    requests += [(CHAT, body | {"n": 3, "temperature": 1.0, "ignore_eos": True}, False)]
    for number, (path, request, stream) in enumerate(requests):
        charged = Charged("sample", "team", f"key {number}", "m", 3)
        extra = options if stream and path in (CHAT, COMPLETIONS) else {}
        answer = ask(client.address, VERSIONS[1], request | extra, path, charged).finish()
        assert answer.status == 200, answer.body
        prompt, _, sampled = usage_of(path, answer.body, stream)
        asked[charged] = prompt, sampled
    leaver = Charged("sample", "team", "leaver", "m", 3)
    leaving = ask(client.address, VERSIONS[1], LONG | {"n": 4, "stream": True}, CHAT, leaver)
    leaving.response.read(200)
    leaving.cancel()
    job = "a-training-job"
    ray.get(client.actor.score.remote(random_sequences(5, seed=2), VERSIONS[1], job_id=job))
    client.score([[5, 6, 7]], VERSIONS[1])
    client.wait_until_idle()

    new, now_busy_s = ray.get(client.actor.take_usage.remote(max((batch.number for batch in batches), default=0)))
    used: dict[Charged, Used] = {}
    for batch in new:
        for charged, amounts in batch.used.items():
            used.setdefault(charged, Used()).add(amounts)
    assert {charged: (used[charged].prompt_tokens, used[charged].sampled_tokens) for charged in asked} == asked
    assert all(used[charged].requests == 1 and used[charged].engine_seconds > 0 for charged in asked)
    repeated = [charged for charged, amounts in used.items() if amounts.cached_prompt_tokens]
    assert repeated and all(amounts.cached_prompt_tokens < amounts.prompt_tokens for amounts in map(used.get, repeated))
    assert used[leaver].requests == 1 and 0 < used[leaver].sampled_tokens < 4 * MAX_MODEL_LEN
    scored = used[Charged("score", job_id=job)]
    assert scored.engine_seconds > 0 and scored.sampled_tokens == scored.prompt_tokens == 0
    assert set(used) == {*asked, leaver, Charged("score", job_id=job), Charged()}
    assert sum(amounts.engine_seconds for amounts in used.values()) == pytest.approx(now_busy_s - busy_s)
    assert {one.model_id for batch in new for one in batch.sampling} == {"m"}


def test_a_sleeping_engine_holds_all_work_until_it_wakes_up(client):
    ray.get(client.actor.lease_sleep.remote("learners", 600))
    completion = client.start(VERSIONS[1], {"messages": MESSAGES, "max_tokens": 4})
    scores = client.actor.score.remote([[1, 2, 3]], VERSIONS[1])
    check = client.actor.check_version.remote(VERSIONS[2])
    assert not ray.wait([scores, check], timeout=1)[0]
    assert client.load()["num_unfinished"] == 0
    ray.get(client.actor.release_sleep.remote("learners"))
    assert client.finish(completion).status == 200
    assert len(ray.get(scores)[0]) == 3
    ray.get(check)


def test_the_death_of_the_core_is_told_to_all(client):
    """This must be the last test of the file: the engine isn't restarted."""
    ray.get(client.actor.check_health.remote())
    answering = client.start(VERSIONS[1], LONG)
    scored = client.actor.score.remote(random_sequences(100, seed=4), VERSIONS[1])
    client.wait_until_busy(MANY + 20)
    client.core_process().send_signal(signal.SIGKILL)
    assert client.finish(answering).status == 503
    with pytest.raises(EngineDeadError):
        ray.get(scored)
    with pytest.raises(EngineDeadError):
        ray.get(client.actor.check_health.remote())
    assert client.ask(VERSIONS[1], {"messages": MESSAGES}).status == 503
    with pytest.raises(EngineDeadError):
        client.score([[5, 6]], VERSIONS[1])
