"""`tandem export MODEL DIR`: a version's adapter, or a whole checkpoint with the adapter merged into its base model."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.client import Adapter, Client
from tandem.client.adapters import check_empty, put_in_place
from tandem.rl.tiny.model import resolve_model

_VERSION = re.compile(r"(?P<model>.+?)(?::step(?P<step>0|[1-9][0-9]{0,8}))?")
WEIGHTS = (".safetensors", ".bin")
SPARE_BYTES = 64 << 20
"""For the tokenizer and other small files."""


class ExportError(Exception):
    """The export can't be made. The message says why, and what to do."""


def parse_version(named: str) -> tuple[str, int | None]:
    """Return the model and the step in MODEL[:stepN]; None for the newest."""
    match = _VERSION.fullmatch(named)
    if match is None:
        raise ExportError(f"{named!r} names no model. Write MODEL or MODEL:stepN.")
    return match["model"], None if match["step"] is None else int(match["step"])


def export(client: Client, named: str, directory: Path, merge: bool, base: str | None) -> Adapter:
    """Export a version to a directory that appears once it is complete. Raise ExportError, and the client's errors."""
    model, step = parse_version(named)
    if base is not None and not merge:
        raise ExportError("--base is the base model of a merged checkpoint. Add --merge, or leave --base out.")
    try:
        check_empty(directory)
        directory.parent.mkdir(parents=True, exist_ok=True)
        if not merge:
            return client.download_adapter(model, directory, step)
        with _aside(directory) as aside:
            adapter = client.download_adapter(model, aside / "adapter", step)
            path = _base_path(adapter, base)
            _check_room(path, directory)
            _merge(path, aside / "adapter", aside / "merged")
            put_in_place(aside / "merged", directory)
        return adapter
    except FileExistsError as error:
        raise ExportError(str(error)) from None
    except OSError as error:
        raise ExportError(f"{directory} can't be written: {error}.") from error


def _base_path(adapter: Adapter, base: str | None) -> str:
    path = base or adapter.base_model_path
    if path is None:
        raise ExportError(
            f"The service has base model {adapter.model.base_model} no longer. Name its weights with --base."
        )
    if base is not None and base.startswith(("/", ".", "~")) and not Path(base).is_dir():
        raise ExportError(f"--base {base} isn't a directory here.")
    if path.startswith("/") and not Path(path).is_dir():
        raise ExportError(
            f"The base model is at {path} on the service's machine, which isn't a directory here. Name its weights "
            "with --base: a directory or a Hugging Face id."
        )
    return resolve_model(path)


def _check_room(base_path: str, directory: Path) -> None:
    """Raise ExportError if the disk has too little space for the base model's weights again."""
    if not Path(base_path).is_dir():
        return  # a Hugging Face id, whose size only a download tells
    files = [file for file in Path(base_path).iterdir() if file.name.endswith(WEIGHTS)]
    needed = sum(file.stat().st_size for file in files) + SPARE_BYTES
    free = shutil.disk_usage(directory.parent).free
    if free < needed:
        raise ExportError(
            f"A merged checkpoint takes about {needed / 1e9:.1f} GB, and {directory.parent} has {free / 1e9:.1f} GB "
            "free. Make room, or name a directory on another disk."
        )


def _merge(base_path: str, adapter: Path, merged: Path) -> None:
    from tandem.rl.errors import RLError
    from tandem.rl.models.lora.merging import write_merged

    try:
        write_merged(base_path, adapter, merged)
    except RLError as error:
        raise ExportError(str(error)) from error


@contextmanager
def _aside(directory: Path) -> Iterator[Path]:
    """Yield a directory beside the final one, for what isn't complete yet."""
    aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)
