"""Files that aren't YAML mappings: one sentence that names file, line and column."""

import os
import re
import threading

import pytest

from tandem.rl.yaml_files import YamlFileError, load_mapping

BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "tab": (b"name: demo\n\tenvironment: x\n", "2, column 1", "tab"),
    "tab in a list": (b"base_models:\n\t- name: x\n", "2, column 1", "tab"),
    "tab after a value": (b"a:\n  b: 1\n\t\tc: 2\n", "3, column", "tab"),
    "latin-1": (b"name: demo\nclass: caf\xe9.py:Env\n", "2, column 11", "UTF-8"),
    "windows-1252": (b"a: \x93x\x94\n", "1, column 4", "UTF-8"),
    "utf-16 with its mark": ("a: ü\n".encode("utf-16"), "1, column 1", "UTF-8"),
    "utf-16, big end first": (b"\xfe\xff" + "a: 1\n".encode("utf-16-be"), "1, column 1", "UTF-8"),
    "utf-16 without a mark": ("a: 1\n".encode("utf-16-le"), "1, column 1", "UTF-8"),
    "utf-32": ("a: 1\n".encode("utf-32"), "1, column 1", "UTF-8"),
    "NUL": (b"name: a\nvalue: x\0y\n", "2, column 9", "U+0000"),
    "escape sequence": (b"a: \x1b[31mred\n", "1, column 4", "U+001B"),
    "empty": (b"", "1, column 1", "empty"),
    "only a comment": (b"# nothing\n", "1, column 1", "empty"),
    "list": (b"- a\n- b\n", "1, column 1", "list"),
    "word": (b"\nhello\n", "2, column 1", "single value"),
    "number": (b"3", "1, column 1", "single value"),
    "field twice": (b"a: 1\nb: 2\na: 3\n", "3, column 1", "twice"),
    "field twice inside": (b"a:\n  b: 1\n  c: 2\n  b: 3\n", "4, column 3", "twice"),
    "open bracket": (b"a: [1, 2\nb: 3\n", "2, column", ""),
    "open quote": (b'a: "x\n', "2, column", ""),
    "two documents": (b"a: 1\n---\nb: 2\n", "2, column 1", ""),
    "object": (b"a: !!python/object/apply:os.system [ls]\n", "1, column 4", "python/object"),
    "unknown tag": (b"a: 1\nb: !secret x\n", "2, column 4", "!secret"),
    "unknown alias": (b"a: *b\n", "1, column 4", "alias"),
    "alias in itself": (b"a: &a [*a]\n", "1, column 4", "itself"),
    "alias bomb": (BOMB.encode(), "1, column 1", "expand"),
    "deep nesting": (b"a: " + b"[" * 20_000, "1, column 1", "deep"),
    "no such day": (b"a: 1\nb: 2024-13-45\n", "2, column 4", "quotes"),
    "number as a field": (b"a: 1\n7: 2\n", "2, column 1", "text"),
    "switch as a field": (b"on: 1\n", "1, column 1", "text"),
    "list as a field": (b"? [a]\n: 1\n", "1, column 3", ""),
    "program": (b"\x7fELF\x02\x01\x01" + bytes(64), "1, column", ""),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_one_sentence_with_its_place(tmp_path, fault):
    content, place, word = BROKEN[fault]
    file = tmp_path / "file.yaml"
    file.write_bytes(content)
    with pytest.raises(YamlFileError) as caught:
        load_mapping(file)
    said = str(caught.value)
    assert said.startswith(f"{file}, line {place}"), said
    assert word in said and "\n" not in said


@pytest.mark.parametrize(
    "path", ["absent.yaml", ".", "absent/file.yaml", "x" * 300, "nul\0", "/dev/zero", "run[/INST].yaml"]
)
def test_a_path_without_a_file_is_named(tmp_path, path):
    with pytest.raises(YamlFileError, match=re.escape(path)):
        load_mapping(tmp_path / path if path != "/dev/zero" else path)


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "file.yaml").write_bytes(b"\xef\xbb\xbfname: \xc3\xbc\n")
    assert load_mapping(tmp_path / "file.yaml") == {"name": "ü"}


def test_a_pipe_is_read_like_a_file(tmp_path):
    """As in `tandem up --config <(...)`."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=["a: 1e-3\n"])
    writer.start()
    assert load_mapping(tmp_path / "pipe") == {"a": 1e-3}
    writer.join()


def test_aliases_and_merges_are_allowed(tmp_path):
    (tmp_path / "file.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\n")
    first = {"x": 1, "y": 2}
    assert load_mapping(tmp_path / "file.yaml") == {"a": first, "b": {"x": 1, "y": 3}, "c": [first, first]}
