"""Check directories, space and names that a service of this machine needs, before anything is started.

Libraries fail at these late, in some process, with a traceback that names neither the variable nor the directory.
"""

from __future__ import annotations

import getpass
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tandem.cluster.config import TandemConfig

SOCKET_BYTES = 107
"""Longest path of a Unix socket."""
RAYS_SOCKETS = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
VLLMS_SOCKETS = "/01234567-0123-0123-0123-0123456789ab"
SHARED_MEMORY = Path("/dev/shm")
MIN_FREE_BYTES = 64 << 20
MIN_FREE_SHARED_BYTES = 8 << 20
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


class UnusableError(ValueError):
    """A directory or a name of this machine can't be used. The message names it and its variable."""


def check_home(config: TandemConfig) -> None:
    """Create the service's home if it is missing. Raise UnusableError if nothing can be written there."""
    variable = "TANDEM_HOME" if "TANDEM_HOME" in os.environ else "home"
    is_default = variable == "home" and config.home == Path("~/.tandem").expanduser()
    _check_writable(config.home, variable, "HOME" if is_default else variable, private=True)


def check_surroundings(config: TandemConfig) -> None:
    """Check all that a Ray and a service on this machine need. Raise UnusableError."""
    for check in checks_of_surroundings(config).values():
        check()


def checks_of_surroundings(config: TandemConfig) -> Mapping[str, Callable[[], None]]:
    """Return the checks by the name of their object. Each raises UnusableError."""
    return {
        "home": lambda: check_home(config),
        "working directory": _check_working_directory,
        "temporary directory": _check_all_temporary,
        "shared memory files": _check_shared_memory,
        "caches": lambda: _check_caches(config),
        "user name": _check_user_name,
    }


def _check_writable(directory: Path, variable: str, origin: str, private: bool = False) -> None:
    """`origin`: the variable from which the value of `variable` follows."""
    named = f"{variable} is {directory}" if origin == variable else f"{variable} is {directory}, below {origin}"
    choice = variable if origin == variable else f"{origin} or {variable}"
    advice = f"Set {choice} to a directory that you can write to."
    try:
        directory.mkdir(mode=0o700 if private else 0o777, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(bytes(1 << 16))
            file.flush()
        free = shutil.disk_usage(directory).free
    except OSError as error:
        raise UnusableError(f"{named}, which can't be used ({error.strerror}). {advice}") from None
    if free < MIN_FREE_BYTES:
        raise UnusableError(
            f"{named}, whose disk has only {free >> 20} MiB free. Make room there, or move it: {advice}"
        )


def _temporary_directories() -> Iterator[tuple[str, Path, str]]:
    """Yield each variable with its directory and the longest path of a socket below it."""
    rays = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    yield rays, Path(os.environ.get(rays, "/tmp")), RAYS_SOCKETS
    if rays != "TMPDIR":
        yield "TMPDIR", Path(os.environ.get("TMPDIR", "/tmp")), VLLMS_SOCKETS


def _check_all_temporary() -> None:
    for variable, directory, sockets in _temporary_directories():
        _check_temporary(variable, directory, sockets)


def _check_caches(config: TandemConfig) -> None:
    for variable, directory in _caches(config).items():
        default_of = "XDG_CACHE_HOME" if os.environ.get("XDG_CACHE_HOME") else "HOME"
        _check_writable(directory, variable, variable if os.environ.get(variable) else default_of)


def _check_temporary(variable: str, directory: Path, sockets: str) -> None:
    named = f"{variable} is {directory}"
    if not directory.is_absolute():
        raise UnusableError(f"{named}, which depends on each process's working directory. Write an absolute path.")
    if (most := SOCKET_BYTES - len(sockets)) < (length := len(os.fsencode(directory))):
        raise UnusableError(
            f"{named}, which has {length} bytes; the sockets of Ray and vLLM there allow {most}. Set {variable} to a "
            "short path, like /tmp."
        )
    if not directory.is_dir():
        raise UnusableError(f"{named}, which isn't a directory. Create it, or unset {variable} for /tmp.")
    below = directory / "ray"
    _check_writable(below if sockets == RAYS_SOCKETS and below.exists() else directory, variable, variable)


def _check_shared_memory() -> None:
    try:
        with tempfile.TemporaryFile(dir=SHARED_MEMORY):
            free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise UnusableError(
            f"{SHARED_MEMORY}, the shared memory, can't be written ({error.strerror}). Mount it."
        ) from None
    if free < MIN_FREE_SHARED_BYTES:
        raise UnusableError(
            f"{SHARED_MEMORY}, the shared memory, has only {free >> 10} KiB free. Remove files there, or make it "
            "larger (docker run --shm-size=1g)."
        )


def _caches(config: TandemConfig) -> Mapping[str, Path]:
    """Return the directories in which libraries write, by variable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    defaults = {"VLLM_CACHE_ROOT": cache / "vllm"}
    if _downloads(config):
        defaults["HF_HOME"] = cache / "huggingface"
    named = {variable: os.environ.get(variable) for variable in (*defaults, "TORCHINDUCTOR_CACHE_DIR", "HF_HUB_CACHE")}
    if not _downloads(config):
        named.pop("HF_HUB_CACHE")
    chosen = {variable: Path(value) for variable, value in named.items() if value}
    try:
        return {variable: path.expanduser().absolute() for variable, path in {**defaults, **chosen}.items()}
    except RuntimeError:
        raise UnusableError("This user has no home directory. Set HOME to a directory that you can write to.") from None


def _downloads(config: TandemConfig) -> bool:
    """Return True if a base model may have to be downloaded."""
    if any(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in OFFLINE):
        return False
    paths = [path for base in config.base_models for path in (base.path, base.engine.path) if path is not None]
    return any(not (path.startswith("builtin:") or os.path.exists(path)) for path in paths)


def _check_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UnusableError("The working directory has been removed. Change to another one.") from None


def _check_user_name() -> None:
    try:
        getpass.getuser()
    except (KeyError, OSError):  # as in a container with any user id
        raise UnusableError(f"The user {os.getuid()} has no name, which torch needs. Set USER to one.") from None
