"""Chat templates of real model families, a small tokenizer with their control tokens, and the engine's renderer.

Templates of the families that TRL ships are the real ones. The others, in tests/data/chat_templates, are written down
from how those models behave.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from paths import DATA
from transformers import AutoTokenizer, PreTrainedTokenizerBase

BOS, EOS = "<s>", "</s>"
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}


@dataclass(frozen=True)
class Family:
    name: str
    template: str
    """File of the template."""
    end: str = EOS
    """The token that ends a turn."""
    markup: tuple[str, ...] = ()
    """Further tokens that its tokenizer has."""
    from_trl: bool = True
    thought: str = "<think>\nbecause\n</think>\n\n"
    """A thought before an answer, as the model samples it after its prompt."""

    @property
    def writes_date(self) -> bool:
        """Whether its prompts have the current date."""
        return "strftime_now" in self.text

    @property
    def text(self) -> str:
        if not self.from_trl:
            return (DATA / "chat_templates" / self.template).read_text()
        trl = importlib.util.find_spec("trl")
        if trl is None or not trl.submodule_search_locations:
            pytest.skip("TRL, which ships the templates of real models, isn't installed")
        return (Path(trl.submodule_search_locations[0]) / "chat_templates" / self.template).read_text()


CHATML = ("<|im_start|>", "<|im_end|>")
THINK = ("<think>", "</think>")
QWEN = (*CHATML, *THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>", "<|eom_id|>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
MISTRAL = ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]")

FAMILIES = (
    Family("Qwen2.5", "qwen2_5.jinja", "<|im_end|>", QWEN),
    Family("Qwen3", "qwen3.jinja", "<|im_end|>", QWEN),
    Family("Qwen3-2507", "qwen3_instruct_2507.jinja", "<|im_end|>", QWEN),
    Family("Qwen3.5", "qwen3_5_think.jinja", "<|im_end|>", QWEN, thought="because\n</think>\n\n"),
    Family("Qwen3.8", "qwen3_8.jinja", "<|im_end|>", QWEN, thought="because\n</think>\n\n"),
    Family("Llama 3.1", "llama3_1.jinja", "<|eot_id|>", LLAMA),
    Family("Llama 3.2", "llama3_2.jinja", "<|eot_id|>", LLAMA),
    Family("Gemma 3", "gemma3.jinja", "<end_of_turn>", ("<start_of_turn>",)),
    Family("Gemma 4", "gemma4.jinja", "<turn|>", ("<|turn>", "<|channel>", "<channel|>"),
           thought="<|channel>thought\nbecause\n<channel|>"),
    Family("Mistral v3", "mistral_v3_tekken.jinja", EOS, MISTRAL, from_trl=False),
    Family("Phi-3.5", "phi3_5.jinja", "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>")),
    Family("Phi-4", "phi4.jinja", "<|im_end|>", (*CHATML, "<|im_sep|>"), from_trl=False),
    Family("DeepSeek-V3", "deepseekv3.jinja", "<｜end▁of▁sentence｜>", DEEPSEEK, thought="because\n</think>\n\n"),
    Family("DeepSeek-R1 distilled", "deepseek_r1_distill.jinja", "<｜end▁of▁sentence｜>", DEEPSEEK,
           thought="because\n</think>\n\n"),
    Family("gpt-oss", "gptoss.jinja", "<|return|>", ("<|start|>", "<|channel|>", "<|message|>", "<|end|>"),
           thought="<|channel|>analysis<|message|>because<|end|><|start|>assistant<|channel|>final<|message|>"),
    Family("GLM-4.5", "glm4moe.jinja", "<|user|>", ("<|assistant|>", "<|observation|>", "[gMASK]", "<sop>"),
           thought="\n<think>because</think>\n"),
    Family("Nemotron 3", "nemotron_3_nano.jinja", "<|im_end|>", QWEN, thought="because\n</think>\n"),
    Family("Granite 3", "granite_3.jinja", "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"),
           from_trl=False),
    Family("SmolLM3", "smollm3.jinja", "<|im_end|>", (*CHATML, *THINK), from_trl=False),
    Family("OLMo 2", "olmo2.jinja", EOS, (), from_trl=False),
)  # fmt: skip


def save_small_tokenizer(directory: Path) -> None:
    """Write a byte-level tokenizer with the control tokens of all families, and a model's configuration."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizer")
    tokens = {token: None for family in FAMILIES for token in (family.end, *family.markup)}
    tokenizer.add_special_tokens({"bos_token": BOS, "eos_token": EOS})
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    tokenizer.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": len(tokenizer)}))


class Refused(Exception):
    """The engine refuses the request."""


class EngineRenderer:
    """vLLM's renderer of chat requests, as an engine of the model in a directory has it."""

    def __init__(self, directory: Path) -> None:
        from vllm.config import DeviceConfig, ModelConfig, VllmConfig
        from vllm.renderers.registry import renderer_from_config

        self._model = ModelConfig(model=str(directory), dtype="float32")
        self._renderer = renderer_from_config(VllmConfig(model_config=self._model, device_config=DeviceConfig("cpu")))

    def prompt(self, template: str | None, request: dict[str, Any]) -> list[int]:
        """Return the ids of a chat request's prompt. Raises Refused."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.exceptions import VLLMValidationError

        try:
            asked = ChatCompletionRequest.model_validate(copy.deepcopy({"model": "policy", **request}))
            answer = asyncio.run(self._online(template).render_chat(asked))
        except (ValueError, VLLMValidationError) as error:  # vLLM answers these with a 400
            raise Refused(str(error)) from error
        if not isinstance(answer, tuple):
            raise Refused(answer.error.message)
        ids: list[int] = answer[1][0]["prompt_token_ids"]
        return list(ids)

    @cache  # noqa: B019
    def _online(self, template: str | None) -> Any:
        from vllm.renderers.online_renderer import OnlineRenderer

        return OnlineRenderer(
            self._model,
            self._renderer,
            request_logger=None,
            chat_template=template,
            chat_template_content_format="auto",
            enable_auto_tools=True,
            tool_parser="hermes",
        )


def load_with(directory: Path, template: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a directory with another chat template."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.chat_template = template
    return tokenizer
