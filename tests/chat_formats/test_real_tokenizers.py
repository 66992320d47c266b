"""The rule of exactness with the tokenizers of real models, which `make tokenizers` fetches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from families import BOS, CONFIG, FAMILIES, EngineRenderer
from paths import ROOT
from playing import train
from scenarios import SCENARIOS, Model, Sampled, assistant, check_random_turns, outcome, user

pytest.importorskip("vllm")
pytestmark = pytest.mark.slow
FAMILY_OF = {"qwen3": "Qwen3", "llama3_1": "Llama 3.1", "gemma3": "Gemma 3", "deepseek_v3": "DeepSeek-V3"}
CHARACTERS = "🙂 👩‍👩‍👧‍👦 🇩🇪 e\u0301 ญ็ 𝒳 日本 \ufffd"
"""Emoji of several code points, combining characters, and the character that stands for broken bytes."""


@pytest.fixture(scope="module", params=FAMILY_OF)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    files = ROOT / ".tokenizers" / request.param
    if not (files / "tokenizer.json").is_file():
        pytest.skip(f"no tokenizer in {files}: run `make tokenizers`")
    directory = _as_model(files, tmp_path_factory.mktemp(request.param))
    family = next(family for family in FAMILIES if family.name == FAMILY_OF[request.param])
    return Model(family, EngineRenderer(directory), directory)


def _as_model(files: Path, directory: Path) -> Path:
    shutil.copy(files / "tokenizer.json", directory)
    config = json.loads((files / "tokenizer_config.json").read_text())
    if config["tokenizer_class"].startswith("Llama"):
        # The model's own configuration makes transformers and vLLM ignore this wrong name, which loses characters.
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 300_000}))
    return directory


def test_conversations_train_exactly(model: Model):
    assert BOS not in model.template
    assert {outcome(model, scenario) for scenario in SCENARIOS} <= {"whole", "split", "4xx"}


@pytest.mark.parametrize("with_prompts", [True, False])
def test_any_sampled_tokens_train_exactly(model: Model, with_prompts: bool):
    check_random_turns(model, with_prompts)


def test_a_letter_and_its_accent_are_not_the_composed_letter(model: Model):
    """Qwen's tokenizer composes characters, so the next prompt may have other tokens for the same characters."""
    ids = model.chat.encode("e") + model.chat.encode("x\u0301")[1:]
    played = model.play(user("a"), Sampled(ids + model.end, assistant("e\u0301")), user("b"), model.turn("no"))
    for with_prompts in (True, False):
        sequences = train(played, model.chat, with_prompts)
        assert len(sequences) == 2 or model.family.name != "Qwen3"


@pytest.mark.parametrize("with_prompts", [True, False])
def test_turns_that_end_inside_a_character_train_exactly(model: Model, with_prompts: bool):
    ids = model.chat.encode(CHARACTERS)
    whole = model.chat.decode(ids)
    num_broken = 0
    for length in range(1, len(ids)):
        text = model.chat.decode(ids[:length])
        broken = not whole.startswith(text)
        num_broken += broken
        # The engine's text may leave the broken bytes out, or write U+FFFD for them.
        for written in {text, text.rstrip("\ufffd")}:
            first = Sampled(ids[:length], assistant(written))
            played = model.play(user("a"), first, user("b"), model.turn("no"))
            sequences = train(played, model.chat, with_prompts)
            assert len(sequences) == 2 or not broken
    assert num_broken >= 3
