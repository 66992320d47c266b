"""Checks of a configuration: store, artifacts, base models, and their memory on GPUs. Nothing changes."""

from __future__ import annotations

import json
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tandem.cli.doctor.receivers import check_receivers
from tandem.cli.doctor.report import FaultError, Report
from tandem.cli.gpus import Gpu
from tandem.cli.memory_plans import memory_plan
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import TandemConfig
from tandem.cluster.sqlite_urls import sqlite_path

if TYPE_CHECKING:
    from sqlalchemy import Connection

PROBE = b"tandem doctor"


def check_service(report: Report, config: TandemConfig, gpus: Sequence[Gpu]) -> None:
    """Check all that the configuration names."""
    report.check("store", lambda: _store(config))
    report.check("artifacts", lambda: _artifacts(config))
    check_receivers(report, config)
    for base in map(ResolvedBaseModel, config.base_models):
        if report.check(f"model {base.name}", lambda base=base: _model(base)):  # type: ignore[misc]
            report.check(
                f"memory of {base.name}",
                lambda base=base: memory_plan(config, base.name, gpus),  # type: ignore[misc]
            )


def _store(config: TandemConfig) -> str:
    from sqlalchemy.exc import DBAPIError

    from tandem.serve.store.migrations import HEAD, SchemaError, check

    file = sqlite_path(config.resolved_store_url)
    if file and not os.path.exists(file):
        return f"{file} will be created at the first start"
    named = file or "at store_url"
    try:
        with _connection(config, file) as connection:
            found = check(connection)
    except (ValueError, SchemaError) as error:
        raise FaultError(str(error)) from None
    except (DBAPIError, sqlite3.Error) as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise FaultError(f"The store {named} can't be read: {reason}. Repair it, or set another store_url.") from None
    if found is None:
        return f"{named} is empty; the first start creates its tables"
    return f"{named} has schema {found}" + ("" if found == HEAD else f", which the next start migrates to {HEAD}")


@contextmanager
def _connection(config: TandemConfig, file: str | None) -> Iterator[Connection]:
    """Open the database without a change, even of the mode of its journal."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import NullPool

    from tandem.serve.store.connections import open_engine

    if file:
        uri = Path(file).absolute().as_uri() + "?mode=ro"
        engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(uri, uri=True), poolclass=NullPool)
    else:
        engine = open_engine(config.resolved_store_url)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


def _artifacts(config: TandemConfig) -> str:
    """Write a probe, read it and remove it, with its folder if that was missing."""
    from tandem.cluster.artifacts import filesystem_of, without_secrets

    shown, name = without_secrets(config.artifacts_root), f"doctor-{uuid.uuid4().hex}"
    try:
        files, root = filesystem_of(config.artifacts_root)
        was_missing = not files.exists(root)
        if was_missing:
            files.makedirs(root, exist_ok=True)
        try:
            files.pipe_file(f"{root}/{name}", PROBE)
            found = files.cat_file(f"{root}/{name}")
            files.rm_file(f"{root}/{name}")
        finally:
            if was_missing and files.exists(root) and not files.ls(root):
                files.rmdir(root)
    except Exception as error:  # whatever the driver of a file system raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FaultError(f"Nothing can be written at {shown} ({reason}). Set artifacts to another place.") from None
    if found != PROBE:
        raise FaultError(f"A file at {shown} has other bytes than were written. Set artifacts to another place.")
    return f"{shown} can be written and read"


def _model(base: ResolvedBaseModel) -> str:
    """Return what the model is, after the checks that need none of its weights, and that these are there."""
    try:
        geometry = base.check()
    except (OSError, ValueError) as error:  # ValueError: also PolicyError
        raise FaultError(str(error).strip().splitlines()[0]) from None
    try:
        tokenizer = base.tokenizer
    except Exception as error:  # tokenizers fail in many ways on broken files
        raise FaultError(f"The tokenizer of {base.path} can't be loaded: {str(error).splitlines()[0]}") from None
    if tokenizer.chat_template is None:
        raise FaultError(f"{base.path} has no chat template, which chat completions need. Use an instruct model.")
    files = _weights(Path(base.path)) if os.path.isdir(base.path) else "files from the Hugging Face hub or its cache"
    return (
        f"{geometry.family}, {geometry.num_parameters:,} parameters, LoRA {geometry.lora_parameters:,}, sequences of "
        f"{base.max_model_len:,} tokens; {files}"
    )


def _weights(directory: Path) -> str:
    """Return the size of the weights. Raise FaultError for files that are named and missing, or can't be opened."""
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        names = sorted(file.name for file in directory.glob("*.safetensors"))
        names = names or sorted(file.name for file in directory.glob("pytorch_model*.bin"))
    if not names:
        raise FaultError(f"{directory} has no weights (*.safetensors). Download the model again.")
    size = 0
    for name in names:
        try:
            with (directory / name).open("rb") as file:
                if not file.read(8):
                    raise FaultError(f"{directory / name} is empty. Download the model again.")
            size += (directory / name).stat().st_size
        except OSError as error:
            raise FaultError(f"{directory / name} can't be read ({error.strerror}). Download it again.") from None
    return f"{len(names)} file{'s' if len(names) > 1 else ''} of weights, {size / 1e6:,.1f} MB"
