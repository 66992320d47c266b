"""The tiny model's tokenizer: byte-level BPE with Qwen's special tokens."""

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from tandem.rl.tiny.chat_template import CHAT_TEMPLATE

PAD_TOKEN = "<|endoftext|>"
EOS_TOKEN = "<|im_end|>"
CONTROL_TOKENS = (PAD_TOKEN, "<|im_start|>", EOS_TOKEN)
# Part of the model's answers, so never skipped in decoding: tool parsers look for them in the text.
MARKUP_TOKENS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")


def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
    """Render a chat with CHAT_TEMPLATE, without a tokenizer: one is trained on the result."""
    # transformers declares the first result as str; it is a list with a text for each conversation.
    rendered: Any = render_jinja_template(
        conversations=[messages], tools=None if tools is None else list(tools), chat_template=CHAT_TEMPLATE
    )
    text: str = rendered[0][0]
    return text


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocab_size` entries: the 256 bytes, the special tokens, and merges learned from `texts`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    special = [AddedToken(token, normalized=False) for token in CONTROL_TOKENS + MARKUP_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    special_token = re.compile("|".join(map(re.escape, CONTROL_TOKENS + MARKUP_TOKENS)))
    bpe.train_from_iterator((piece for text in texts for piece in special_token.split(text)), trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise ValueError(f"The corpus yields {bpe.get_vocab_size()} of {vocab_size} tokens; lower vocab_size.")
    return PreTrainedTokenizerFast(
        tokenizer_object=_with_visible_markup(bpe),
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _with_visible_markup(bpe: Tokenizer) -> Tokenizer:
    """Make MARKUP_TOKENS ordinary tokens again: the trainer marks every given token as special."""
    description = json.loads(bpe.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["content"] in CONTROL_TOKENS
    return Tokenizer.from_str(json.dumps(description))
