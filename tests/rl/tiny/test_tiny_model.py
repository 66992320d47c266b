"""The built-in tiny model answers in sentences, calls a tool, and can still improve."""

import json
import random
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tandem.rl.tiny.corpus import ADD_TOOL, biggest, call_tool, conversations, greet, largest, smallest
from tandem.rl.tiny.model import resolve_model
from tandem.rl.tiny.tokenizer import render


@pytest.fixture(scope="module")
def path(tiny_model):
    return tiny_model


@pytest.fixture(scope="module")
def tokenizer(path):
    return AutoTokenizer.from_pretrained(path)


@pytest.fixture(scope="module")
def model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def answers(model, tokenizer, messages, tools=None, num=1, sample=True):
    prompt = tokenizer.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    torch.manual_seed(0)
    out = model.generate(**prompt, max_new_tokens=48, do_sample=sample, num_return_sequences=num)
    return [tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True) for ids in out]


def test_it_answers_in_sentences_and_guesses_the_largest(model, tokenizer):
    rng = random.Random(1)
    right = well_formed = total = 0
    for _ in range(20):
        question = largest(rng).messages[0]
        numbers = re.findall(r"\d+", question["content"])
        for answer in answers(model, tokenizer, [question], num=8):
            total += 1
            well_formed += re.fullmatch(r"The largest is \d+\.", answer) is not None
            right += answer == f"The largest is {max(map(int, numbers))}."
    assert well_formed / total > 0.95
    assert 0.15 < right / total < 0.6  # training can improve this


def test_it_calls_a_tool_when_it_has_one(model, tokenizer):
    messages = [{"role": "user", "content": "What is 3 plus 4?"}]
    [answer] = answers(model, tokenizer, messages, tools=[ADD_TOOL], sample=False)
    assert re.fullmatch(r'<tool_call>\s*\{"name": "add", "arguments": \{"a": 3, "b": 4\}\}\s*</tool_call>', answer)


def test_text_survives_the_tokenizer(tokenizer):
    for text in ("The largest is 17.", "Füße, naïve, 日本語, emoji 🙂\n\ttab", "a  b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>"


def test_a_rendered_turn_is_the_sampled_text(tokenizer):
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " two  spaces \n"}]
    prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert whole.startswith(f"{prompt} two  spaces \n<|im_end|>")


def test_a_built_in_name_resolves_to_the_shipped_files(path):
    assert resolve_model("builtin:tiny") == str(path)
    assert resolve_model("org/model") == "org/model"
    with pytest.raises(ValueError, match="builtin:small"):
        resolve_model("builtin:small")


def test_the_shipped_weights_load_in_float32(path):
    assert AutoModelForCausalLM.from_pretrained(path, dtype="auto").dtype == torch.float32


def test_the_corpus_follows_from_its_seed():
    def first(seed):
        stream = conversations(seed)
        return [next(stream) for _ in range(50)]

    assert first(3) == first(3) != first(4)


def loss_of(model, tokenizer, task, num=50):
    """Return the mean negative logprob of the last answers of `num` conversations."""
    rng, total = random.Random(5), 0.0
    for _ in range(num):
        conversation = task(rng)
        text = render(conversation.messages, conversation.tools)
        start = text.rindex("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        prompt, answer = (tokenizer(part)["input_ids"] for part in (text[:start], text[start:].rstrip("\n")))
        with torch.no_grad():
            logprobs = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total -= logprobs.gather(1, torch.tensor(answer)[:, None]).sum().item()
    return total / num


@pytest.mark.slow
def test_the_recipe_still_makes_such_a_model(path, model, tokenizer, tmp_path):
    """The recipe makes the same tokenizer and architecture, and a model about as good. Weights differ by machine."""
    subprocess.run([sys.executable, "-m", "tandem.rl.tiny.training", str(tmp_path)], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (path / name).read_bytes(), name
    for name in ("config.json", "generation_config.json"):
        made, shipped = (json.loads((folder / name).read_text()) for folder in (tmp_path, path))
        assert made | {"transformers_version": ""} == shipped | {"transformers_version": ""}
    rebuilt = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for task, most in ((biggest, 0.3), (smallest, 0.3), (greet, 0.3), (call_tool, 6.0), (largest, 2.5)):
        for of in (model, rebuilt):
            assert loss_of(of, tokenizer, task) < most, task.__name__
