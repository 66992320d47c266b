"""Read a YAML file of settings strictly: each fault is one sentence with file, line and column."""

from __future__ import annotations

import codecs
import math
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

from tandem.rl.errors import RLError

MAX_BYTES = 16 << 20
MAX_VALUES = 1_000_000
"""Values after aliases are expanded: a few hundred bytes of nested aliases may stand for billions."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class YamlFileError(RLError, ValueError):
    """A file that can't be read or isn't a YAML mapping. The message names file, line and column."""


def load_mapping(path: str | Path) -> dict[str, Any]:
    """Return the fields of a YAML file. Raise YamlFileError.

    1e-3 is a number, as in YAML 1.2. A field that occurs twice in one mapping is an error: YAML forbids it, and one of
    the two values would be ignored silently.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            raise YamlFileError(f"{path}, line 1, column 1: the file is empty. Write fields, like `name: value`.")
        if not isinstance(node, MappingNode):
            kind = "a list" if isinstance(node, SequenceNode) else "a single value"
            raise _fault(path, node.start_mark, f"the file is {kind}. Write fields, like `name: value`.")
        _check_size(path, node)
        fields = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        assert mark is not None, "the errors of PyYAML's parser and constructor have a place"
        raise _fault(path, mark, _problem(error, text)) from None
    except RecursionError:
        raise YamlFileError(f"{path}, line 1, column 1: values are nested too deeply.") from None
    for key, _ in node.value:
        if not isinstance(loader.construct_object(key, deep=True), str) and not _is_merge(key):
            raise _fault(path, key.start_mark, f"the name of a field must be text. Write it in quotes: {key.value!r}.")
    return dict(fields)


def _text(path: str | Path) -> str:
    """Return the file's text; at most MAX_BYTES are read, because it may be a device."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: the path has a NUL
        reason = getattr(error, "strerror", None) or str(error)
        raise YamlFileError(f"{path} can't be read: {reason}.") from None
    if len(content) > MAX_BYTES:
        raise YamlFileError(f"{path} has more than {MAX_BYTES >> 20} MiB, so it isn't a file of settings.")
    if content.startswith(_UTF_16) or b"\0" in content[:4]:
        raise YamlFileError(
            f"{path}, line 1, column 1: the file is UTF-16 or UTF-32 text, or binary. Save it as UTF-8."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        found = f"byte 0x{content[error.start]:02x} isn't UTF-8"
        raise YamlFileError(f"{path}, {_place(before)}: {found}. Save the file as UTF-8.") from None
    if found_character := yaml.SafeLoader.NON_PRINTABLE.search(text):
        code = f"U+{ord(found_character[0]):04X}"
        where = _place(text[: found_character.start()])
        raise YamlFileError(f"{path}, {where}: the control character {code} isn't allowed. Remove it.")
    return text


def _place(before: str) -> str:
    lines = re.split("\r\n|[\n\r]", before)
    return f"line {len(lines)}, column {len(lines[-1]) + 1}"


def _fault(path: str | Path, mark: Any, problem: str) -> YamlFileError:
    return YamlFileError(f"{path}, line {mark.line + 1}, column {mark.column + 1}: {problem}")


def _problem(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark
    if mark is not None and text[mark.index : mark.index + 1] == "\t":
        return "YAML doesn't allow a tab here. Indent with spaces."
    parts = [part for part in (error.context, error.problem) if part]
    return f"{', '.join(parts) or 'it is not YAML'}."


def _check_size(path: str | Path, root: Node) -> None:
    """Raise YamlFileError if aliases expand to too many values, or contain themselves."""
    sizes: dict[int, float] = {}

    def size(node: Node) -> float:
        known = sizes.get(id(node))
        if known is not None:
            if math.isnan(known):
                raise _fault(path, node.start_mark, "an alias contains itself.")
            return known
        sizes[id(node)] = math.nan  # until all values in it are counted
        sizes[id(node)] = total = 1 + sum(size(value) for value in _values(node))
        return total

    if size(root) > MAX_VALUES:
        raise _fault(path, root.start_mark, f"its aliases expand to more than {MAX_VALUES} values.")


def _values(node: Node) -> list[Node]:
    if not isinstance(node, CollectionNode):
        return []
    return [each for pair in node.value for each in pair] if isinstance(node, MappingNode) else node.value


def _is_merge(key: Node) -> bool:
    return key.tag == "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Rejects fields that occur twice, and gives every fault of a value its place."""

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and not _is_merge(key):
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise ConstructorError(None, None, f"the field {name!r} occurs twice", key.start_mark)
                seen.add(name)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, ArithmeticError) as error:  # like 2024-13-45, which looks like a date
            raise ConstructorError(None, None, f"{error}; put it in quotes to make it text", node.start_mark) from None


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
