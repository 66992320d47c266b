"""The two files of an adapter, unpacked from a tar archive without trusting it."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.names import quoted

FILES = (ADAPTER_CONFIG, ADAPTER)
IGNORED = ("README.md",)
"""A model card that PEFT writes beside them."""
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
MAX_MEMBERS = 16
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """PEFT's files of an adapter on this node's disk."""

    config: Path
    weights: Path

    def sha256(self) -> str:
        """Return a hash of both contents, whatever archive they came in."""
        whole = hashlib.sha256()
        for file in (self.config, self.weights):
            with open(file, "rb") as content:
                whole.update(hashlib.file_digest(content, "sha256").digest())
        return whole.hexdigest()


@contextmanager
def unpacked(archive: Path, directory: Path) -> Iterator[AdapterFiles]:
    """Unpack an uncompressed tar archive below `directory`. The files last as long as the block.

    Raises InvalidRequestError for an archive with anything but an adapter's files, in one folder or none.
    """
    place = Path(tempfile.mkdtemp(prefix="adapter-", dir=directory))
    try:
        try:
            _unpack(archive, place)
        except (tarfile.TarError, EOFError) as error:
            raise _refusal(
                f"isn't an uncompressed tar archive: {error}. Send `tar c {' '.join(FILES)}`, compressed only with "
                "a Content-Encoding"
            ) from None
        if missing := [name for name in FILES if not (place / name).exists()]:
            raise _refusal(f"the archive has no {' and no '.join(missing)}; it needs {' and '.join(FILES)}")
        yield AdapterFiles(place / ADAPTER_CONFIG, place / ADAPTER)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _unpack(archive: Path, place: Path) -> None:
    folders: set[str] = set()
    with tarfile.open(archive, "r:") as tar:
        for number, member in enumerate(tar):
            if number == MAX_MEMBERS:
                raise _refusal(f"the archive has more than {MAX_MEMBERS} entries; send only {' and '.join(FILES)}")
            if member.isdir():
                continue
            folder, _, name = member.name.removeprefix("./").rpartition("/")
            folders.add(folder)
            if name in IGNORED and member.isreg():
                continue
            _check(member, name, folders, place)
            source = tar.extractfile(member)
            assert source is not None, "a regular file has content"
            with open(place / name, "wb") as target:
                shutil.copyfileobj(source, target, _BUFFER_BYTES)


def _check(member: tarfile.TarInfo, name: str, folders: set[str], place: Path) -> None:
    shown = quoted(member.name)
    if name.endswith(PICKLES):
        raise _refusal(f"{shown} may be a pickle, which is never loaded; save the adapter as safetensors")
    if name not in FILES:
        raise _refusal(f"the archive has {shown}, which isn't a file of an adapter; send only {' and '.join(FILES)}")
    if not member.isreg() or member.issparse():
        raise _refusal(f"{shown} isn't a plain file")
    if len(folders) > 1 or (place / name).exists():
        raise _refusal(f"the archive has files of several adapters, the second is {shown}; send one")


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError([Problem(("body",), message)], "invalid_adapter")
