"""Modules beside a user's environment: the user's code imports them first, as in a script, and nobody else does.

A folder in front of `sys.path` would do the former, but then Tandem and its libraries would import the user's
`secrets.py` or `types.py` too. So modules of the folder get an `__import__` of their own, and those with the name of an
installed module are loaded under another name.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

OWN_PACKAGE = "tandem"
"""An environment needs it, whatever lies beside the environment."""

IMPORTLIB = str(Path(importlib.__file__).parent)
LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})


class Neighbours(MetaPathFinder):
    """Finds the modules of one folder. Installed once per folder, with `of`."""

    def __init__(self, folder: Path):
        self._folder = str(folder)
        self._prefix = f"beside_{hashlib.sha256(bytes(folder)).hexdigest()[:12]}_"

    @classmethod
    def of(cls, folder: Path) -> Neighbours:
        """Return the finder of a folder, installed."""
        for finder in sys.meta_path:
            if isinstance(finder, cls) and finder._folder == str(folder):
                return finder
        finder = cls(folder)
        sys.meta_path.insert(0, finder)
        return finder

    def load(self, file: Path) -> ModuleType:
        """Import a file of the folder under a name that no other module has."""
        name = f"{file.stem}_{hashlib.sha256(bytes(file)).hexdigest()[:12]}"
        spec = spec_from_file_location(name, file, loader=_Loader(name, str(file), self))
        assert spec is not None and spec.loader is not None, "it was given"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and pickle look up a class's module there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a module of the folder, unless it has the name of another or a library looks for an optional one."""
        if path is not None:  # inside a package
            is_ours = any(Path(entry).is_relative_to(self._folder) for entry in path)
            return self._ours(PathFinder.find_spec(name, path)) if is_ours else None
        if name.startswith(self._prefix):
            found = PathFinder.find_spec(name.removeprefix(self._prefix), [self._folder])
            return self._ours(found, name)
        found = PathFinder.find_spec(name, [self._folder])
        is_asked_for = found is not None and not self._hides_another(name) and not _is_of_a_library(_importer())
        return self._ours(found) if is_asked_for else None

    def _ours(self, found: ModuleSpec | None, name: str | None = None) -> ModuleSpec | None:
        if found is None or not isinstance(found.loader, SourceFileLoader) or found.origin is None:
            return found if name is None else None
        name = name or found.name
        loader, parts = _Loader(name, found.origin, self), found.submodule_search_locations
        return spec_from_file_location(name, found.origin, loader=loader, submodule_search_locations=parts)

    def _has_module(self, name: str) -> bool:
        """Return True for a file or a package, not for a folder alone, over which installed modules take precedence."""
        found = PathFinder.find_spec(name, [self._folder])
        return name != OWN_PACKAGE and found is not None and found.origin is not None

    def _hides_another(self, name: str) -> bool:
        if name in sys.stdlib_module_names:
            return True
        elsewhere = [entry for entry in sys.path if entry != self._folder]
        found = PathFinder.find_spec(name, elsewhere)
        return found is not None and found.loader is not None

    def import_for_neighbour(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Import as the statement does, with modules of the folder before all others."""
        top, dot, rest = name.partition(".")
        if level or not self._has_module(top) or not self._hides_another(top):
            return builtins.__import__(name, globals, locals, fromlist, level)
        own = self._prefix + top
        return builtins.__import__(own + dot + rest, globals, locals, fromlist, level)


def _importer() -> str:
    """Return the file of the code that is importing a module."""
    frame = sys._getframe(2)
    while frame.f_back and frame.f_code.co_filename.startswith(("<frozen", IMPORTLIB)):
        frame = frame.f_back
    return frame.f_code.co_filename


def _is_of_a_library(file: str) -> bool:
    return file.startswith(LIBRARIES)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, neighbours: Neighbours):
        super().__init__(name, path)
        self._neighbours = neighbours

    def exec_module(self, module: ModuleType) -> None:
        own = {**vars(builtins), "__import__": self._neighbours.import_for_neighbour}
        module.__dict__["__builtins__"] = own
        super().exec_module(module)
