"""Load the environment of a task file: import its class and create it with its options."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tandem.rl.environments.base import Environment
from tandem.rl.environments.neighbours import Neighbours
from tandem.rl.errors import RLError

VERIFIERS = "verifiers:"


class EnvironmentLoadingError(RLError, ValueError):
    """An environment that can't be loaded. The message says what to write instead."""


def load_environment(
    spec: str, options: Mapping[str, Any] | None = None, base_dir: str | Path = "."
) -> Environment[Any]:
    """Import and create the environment of a task file.

    Args:
        spec: `package.module:Class` of an installed package, or `path/to/file.py:Class`. A file may import its
            neighbours, as if Python ran it; nothing else sees them. `verifiers:NAME` is an environment of the
            verifiers library.
        options: keyword arguments of the class.
        base_dir: base of a relative path, usually the folder of the task file.

    Raises:
        EnvironmentLoadingError: gives the reason; its cause is the exception of a module or constructor.
    """
    if spec.startswith(VERIFIERS):
        from tandem.rl.environments.verifiers import Verifiers

        named = {"name": spec.removeprefix(VERIFIERS), "base_dir": str(base_dir)}
        if taken := named.keys() & dict(options or {}).keys():
            raise EnvironmentLoadingError(f"{spec} takes no option {', '.join(sorted(taken))}: the task file says it.")
        return _make(Verifiers, {**dict(options or {}), **named})
    place, colon, class_name = spec.rpartition(":")
    if not (colon and place and class_name.isidentifier()):
        raise EnvironmentLoadingError(
            f"{spec!r} doesn't name an environment: write package.module:Class or path/to/file.py:Class."
        )
    module = _import_file(Path(base_dir) / place) if place.endswith(".py") else _import_module(place)
    return _make(_environment_class(module, class_name, place), dict(options or {}))


def imported(spec: str, base_dir: str | Path, kind: str) -> Any:
    """Return what `package.module:name` or `path/to/file.py:name` names. Raise EnvironmentLoadingError."""
    place, _, name = spec.rpartition(":")
    if not (place and name.isidentifier()):
        raise EnvironmentLoadingError(
            f"{spec!r} doesn't name a {kind}: write package.module:{kind} or path/to/file.py:{kind}."
        )
    module = _import_file(Path(base_dir) / place) if place.endswith(".py") else _import_module(place)
    if not callable(found := getattr(module, name, None)):
        raise EnvironmentLoadingError(f"{place} has no {kind} {name!r}.")
    return found


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _import_failed(name, error) from error
        raise EnvironmentLoadingError(
            f"There is no module {name!r} (Python finds no {error.name!r}). Install its package, or name a file: "
            "path/to/file.py:Class, relative to the task file."
        ) from error
    except Exception as error:  # user code may raise anything
        raise _import_failed(name, error) from error


def _import_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise EnvironmentLoadingError(f"There is no file {path}. Relative paths start at the folder of the task file.")
    try:
        return Neighbours.of(path.parent).load(path)
    except Exception as error:  # user code may raise anything
        raise _import_failed(path, error) from error


def _import_failed(what: str | Path, error: Exception) -> EnvironmentLoadingError:
    return EnvironmentLoadingError(f"Importing {what} failed with {type(error).__name__}: {error}")


def _environment_class(module: ModuleType, name: str, place: str) -> type[Environment[Any]]:
    found = getattr(module, name, None)
    if found is None:
        there = sorted(key for key, value in vars(module).items() if _is_environment(value) and not _is_abstract(value))
        raise EnvironmentLoadingError(
            f"{place} has no class {name!r}. Its environments are: {', '.join(there) or 'none'}."
        )
    if not _is_environment(found):
        raise EnvironmentLoadingError(
            f"{place}:{name} isn't an environment: it must be a class that inherits from "
            "tandem.rl.environments.base.Environment."
        )
    if _is_abstract(found):
        raise EnvironmentLoadingError(
            f"{place}:{name} is abstract: it lacks {', '.join(sorted(found.__abstractmethods__))}."
        )
    environment: type[Environment[Any]] = found
    return environment


def _is_environment(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, Environment)


def _is_abstract(environment: type[Environment[Any]]) -> bool:
    return bool(environment.__abstractmethods__)


def _make(environment: type[Environment[Any]], options: dict[str, Any]) -> Environment[Any]:
    name = environment.__name__
    parameters = inspect.signature(environment).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if unknown := [key for key in options if key not in named and not takes_any]:
        raise EnvironmentLoadingError(
            f"{name} has no option {', '.join(map(repr, unknown))}. Its options are: {', '.join(named) or 'none'}."
        )
    required = [key for key, parameter in named.items() if parameter.default is parameter.empty]
    if missing := [key for key in required if key not in options]:
        raise EnvironmentLoadingError(f"{name} needs a value for the option {', '.join(map(repr, missing))}.")
    try:
        return environment(**options)
    except Exception as error:  # user code may raise anything
        raise EnvironmentLoadingError(f"{name} rejected its options ({type(error).__name__}): {error}") from error
