"""Operations on adapters: download that of a version, import one as a version, and fork a model.

Unlike other operations, these read and write files of this machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import shutil
import tarfile
import tempfile
import uuid
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from tandem.client.calls import register_body
from tandem.client.errors import NotFoundError, TransferError
from tandem.client.flows import Call, Flow, Item, given
from tandem.client.records import Adapter, Model, Page, Version

FILES = ("adapter_config.json", "adapter_model.safetensors")
PIECE_BYTES = 16 << 20
"""Of a download. Each piece is a request of its own, so a lost connection costs no more than this."""


def download_adapter(model: Model | str, directory: str | Path, step: int | None = None) -> Flow[Adapter]:
    """Download the adapter of a version, by default the newest, in PEFT's files.

    `directory` must not exist, or be empty. It appears once all files are complete and have the right SHA-256.

    Args:
        model: the model, its id or its name (entity/project/name or project/name).

    Raises:
        FileExistsError, OSError, TransferError.
    """
    final = Path(directory)
    check_empty(final)
    found: Model = yield from found_model(model)
    step = found.step if step is None else step
    final.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=final.parent))
    try:
        digest, base_path = "", None
        for name in FILES:
            path = f"/v1/preview/models/{quote(found.id, safe='')}/versions/{step}/adapter/{name}"
            headers = yield from _download(path, aside / name)
            digest, base_path = headers["x-policy-digest"], headers.get("x-base-model-path")
        put_in_place(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    yield Item(Adapter(final, found, step, digest, None if base_path is None else unquote(base_path)))


def import_adapter(
    model: Model | str, directory: str | Path, *, step: int | None = None, idempotency_key: str | None = None
) -> Flow[Version]:
    """Import an adapter in PEFT's files as the model's next version, which the newest name then answers from.

    The request carries an idempotency key, so a retry after a lost answer makes no second version.

    Args:
        model: the model, its id or its name (entity/project/name or project/name).
        directory: has adapter_config.json and adapter_model.safetensors, as PEFT's `save_pretrained` writes them.
        step: a later step than the next one.
    """
    archive = _archive(Path(directory))
    found: Model = yield from found_model(model)
    headers = {"Content-Type": "application/x-tar", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    path = f"/v1/preview/models/{quote(found.id, safe='')}/versions"
    version: Version = yield Call(
        "POST", path, Version.parse, given(step=step), content=archive, headers=headers, is_safe=True
    )
    yield Item(version)


def fork_model(
    source: Model | str,
    name: str,
    *,
    project: str | None = None,
    step: int | None = None,
    optimizer: bool | None = None,
    return_existing: bool = True,
) -> Flow[Model]:
    """Register a model that begins with a version of another one, by default its newest.

    Args:
        source: the other model, its id or its name (entity/project/name or project/name).
        project: default: the source's.
        optimizer: continue with the version's optimizer state. Default: if it has one.
        return_existing: if False, raise ConflictError when the name is taken. Such a request is never retried.
    """
    found: Model = yield from found_model(source)
    body = register_body(name, project or found.project, found.base_model, None, return_existing)
    body["from"] = {"model": found.id, **given(step=step, optimizer=optimizer)}
    model: Model = yield Call("POST", "/v1/preview/models", Model.parse, json=body, is_safe=return_existing)
    yield Item(model)


def found_model(named: Model | str) -> Generator[Call[Any], Any, Model]:
    """Return the model with this id or name, as it is now. Raise NotFoundError."""
    if isinstance(named, Model) or "/" not in named:
        id = named.id if isinstance(named, Model) else named
        model: Model = yield Call("GET", f"/v1/preview/models/{quote(id, safe='')}", Model.parse)
        return model
    entity, project, name = ["", *named.split("/")][-3:]
    params = {"project": project, "name": name, "limit": 1}
    page: Page[Model] = yield Call("GET", "/v1/preview/models", Page.parser(Model.parse), params)
    models = [model for model in page.data if entity in ("", model.entity)]
    if not models:
        raise NotFoundError(f"There is no model {named}. `tandem models` lists yours.", 404, "model_not_found")
    return models[0]


def check_empty(directory: Path) -> None:
    """Raise FileExistsError unless the directory is empty or doesn't exist."""
    if directory.is_symlink() or (directory.exists() and (not directory.is_dir() or any(directory.iterdir()))):
        raise FileExistsError(f"{directory} exists and isn't an empty directory. Name another one, or empty it.")


def put_in_place(aside: Path, final: Path) -> None:
    """Rename a complete directory. Raise FileExistsError if another one has appeared."""
    check_empty(final)
    aside.chmod(0o755)
    aside.replace(final)  # an empty directory may be replaced


def _download(path: str, file: Path) -> Generator[Call[Any], Any, Mapping[str, str]]:
    """Download a file piece by piece. Return the headers of the first answer. Raise TransferError."""
    whole = hashlib.sha256()
    with open(file, "wb") as target:

        def write(piece: bytes) -> None:
            whole.update(piece)
            target.write(piece)

        first = yield _piece(path, 0)
        write(first.content)
        headers: Mapping[str, str] = first.headers
        size = int(headers.get("content-range", f"/{len(first.content)}").rpartition("/")[2])
        for start in range(PIECE_BYTES, size, PIECE_BYTES):
            following = yield _piece(path, start, headers["etag"])
            write(following.content)
    expected = headers["repr-digest"].removeprefix("sha-256=:").removesuffix(":")
    if base64.b64encode(whole.digest()).decode() != expected:
        raise TransferError(f"{file.name} arrived damaged: its SHA-256 isn't that of the service. Download it again.")
    return headers


def _piece(path: str, start: int, etag: str | None = None) -> Call[Any]:
    wanted = {"Range": f"bytes={start}-{start + PIECE_BYTES - 1}", **({"If-Range": etag} if etag else {})}
    return Call("GET", path, lambda response: response, headers=wanted, takes_response=True)


def _archive(directory: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in FILES:
            tar.add(directory / name, name)
    return buffer.getvalue()
