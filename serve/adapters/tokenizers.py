"""The tokenizer of a base model as files, for clients that turn text into tokens themselves."""

from __future__ import annotations

from pathlib import Path

from tandem.rl.tiny.model import resolve_model

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("chat_template.jinja", "chat_template.json", "config.json"),
)
"""The names that tokenizers of transformers have. config.json says which kind of tokenizer it is. No code is among
them: a tokenizer that needs its own Python files can't be given out."""


def local_model(path: str) -> Path | None:
    """Return the directory of a configured base model; None if its path is a Hugging Face id."""
    directory = Path(resolve_model(path))
    return directory.absolute() if directory.is_dir() else None


def tokenizer_files(path: str) -> list[Path]:
    """Return the files of the tokenizer of a configured base model.

    Those of a Hugging Face id come from the cache, which processes of the service have filled. Raises OSError if they
    aren't there and can't be fetched.
    """
    directory = local_model(path) or _cached(path)
    found = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    if not any(file.name.startswith("tokenizer") for file in found):
        raise FileNotFoundError(f"{directory} has no tokenizer")
    return found


def _cached(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    names = list(TOKENIZER_FILES)
    try:
        return Path(snapshot_download(hub_id, allow_patterns=names, local_files_only=True))
    except LocalEntryNotFoundError:
        return Path(snapshot_download(hub_id, allow_patterns=names))
