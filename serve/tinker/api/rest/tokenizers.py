"""Tokenizers, which clients of this API load by themselves: where from, and their files over HTTP."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from tandem.cluster.config import TandemConfig
from tandem.serve.adapters.archive import tar_archive
from tandem.serve.adapters.tokenizers import local_model, tokenizer_files
from tandem.serve.api.addresses import is_on_this_machine
from tandem.serve.api.auth import InferCaller
from tandem.serve.api.downloads import download
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import NotFoundError, UnavailableError
from tandem.serve.names import quoted

logger = logging.getLogger(__name__)
router = APIRouter(tags=["tinker"])
TAR = "application/x-tar"
_TAR: dict[int | str, dict[str, Any]] = {
    200: {"content": {TAR: {"schema": {"type": "string", "format": "binary"}}}},
}


def tokenizer_id(request: Request, config: TandemConfig, name: str) -> str:
    """Return from where the sender of this request loads the tokenizer of a base model.

    The configuration may say so. A Hugging Face id is the same everywhere. For a model in a directory, a client on
    this machine gets the directory, and others the base model's name: below their working directory, the archive of the
    files has that name.
    """
    if name in config.tinker.tokenizers:
        return config.tinker.tokenizers[name]
    base = config.base_model(name)
    directory = local_model(base.path)
    if directory is None:
        return base.path
    return str(directory) if is_on_this_machine(request) else base.name


@router.get("/tokenizers/{base_model:path}", response_class=Response, responses=_TAR)
def get_tokenizer(request: Request, base_model: str, caller: InferCaller, services: ServicesDep) -> Response:
    """Return the files of a base model's tokenizer as a tar archive, in a directory of the base model's name."""
    if base_model not in services.base_models:
        names = ", ".join(services.base_models)
        sentence = f"There is no base model {quoted(base_model)}. This service has {names}."
        raise NotFoundError(sentence, "model_not_found", "base_model")
    try:
        files = tokenizer_files(services.config.base_model(base_model).path)
        content = tar_archive([(f"{base_model}/{file.name}", file) for file in files])
    except OSError as error:
        logger.error("The tokenizer of base model %s can't be read", base_model, exc_info=True)
        sentence = f"The files of the tokenizer of {base_model} can't be read on the service's machine: {error}"
        raise UnavailableError(sentence, "tokenizer_unavailable", "base_model") from error
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    name = {"content-disposition": 'attachment; filename="tokenizer.tar"'}
    return download(request, content, digest, name, TAR)
