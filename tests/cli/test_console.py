"""Texts of others are printed as they are, and lists keep their ids whole."""

import ast
import io
import json
from dataclasses import dataclass

import pytest
from paths import ROOT
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from tandem.cli.listing import print_json, print_table
from tandem.runs.reporting.console import PlainConsole

LITERAL = (
    "[/INST]",
    "run[lr=3]/x.yaml",
    "[bold]not bold[/bold]",
    "[link=https://example.com]there[/link]",
    "[@click=quit]",
    ":smile: :warning:",
    "\\[red]",
    "{x} %s \\x1b",
    "naïve ü 中",
)
CONTROL = {
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "a\rb": r"a\rb",
    "bell\x07": r"bell\x07",
    "back\b\x0b\x0c": r"back\x08\x0b\x0c",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "c1 \x9b31m": r"c1 \x9b31m",
    "nul\0": r"nul\x00",
    "evil\u202egnp.exe": r"evil\u202egnp.exe",
    "caf\udce9": r"caf\udce9",
}
TEXTS = {**{text: text for text in LITERAL}, **CONTROL}


def printed(show, **options):
    file = io.StringIO()
    show(PlainConsole(file=file, **options))
    return file.getvalue()


def in_a_table(text):
    table = Table("column")
    table.add_row(text)
    return table


def as_progress(console, text):
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(text)


WAYS = {
    "print": lambda console, text: console.print(text),
    "error": lambda console, text: console.error(text, text),
    "warning": lambda console, text: console.warning(text),
    "table": lambda console, text: console.print(in_a_table(text)),
    "rows": lambda console, text: console.rows(["column"], [[text]]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("is_terminal", [False, True])
def test_text_is_printed_as_it_is_with_control_characters_escaped(way, text, is_terminal):
    # The console's own styles and cursor movements are left out, so that only the text's could remain.
    options = {"force_terminal": is_terminal, "color_system": None, "width": 200, "legacy_windows": False}
    shown = printed(lambda console: WAYS[way](console, text), **options)
    assert TEXTS[text] in shown
    assert not any(ord(letter) < 32 and letter != "\n" for letter in shown)


@pytest.mark.parametrize("text", LITERAL)
def test_a_progress_display_shows_text_as_it_is(text):
    assert text in printed(lambda console: as_progress(console, text), width=200)


@pytest.mark.parametrize("text", CONTROL)
def test_control_characters_in_styled_text_never_reach_the_terminal(text):
    """Rich drops some and keeps others."""
    shown = printed(lambda console: console.print(Text(text, style="red")), force_terminal=True, color_system=None)
    assert not any(ord(letter) < 32 and letter != "\n" for letter in shown)


def test_styles_of_the_program_itself_are_kept():
    assert "\x1b[31m" in printed(lambda console: console.error("no"), force_terminal=True, color_system="standard")


@pytest.mark.parametrize("width", [20, 40, 80])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_ids_and_long_sentences_are_whole_at_every_width(width, is_terminal):
    job = Job()
    options = {"width": width, "force_terminal": is_terminal, "color_system": None}
    columns = {"job": "id", "state": "state", "error": "error"}
    listed = printed(lambda console: print_table(console, columns, [job, job]), **options)
    assert listed.count(job.id) == 2
    path = "/a/very/long/path" * 10
    assert path in printed(lambda console: console.print(f"The file {path} is missing."), **options)


@dataclass
class Job:
    id: str = "4a1c5e0b-6f0f-4a3e-9f1d-2b7c8d9e0f1a"
    state: str = "failed"
    error: str | None = "Stage train: the learner ran out of memory. " * 5


def test_a_pipe_gets_a_line_for_each_item():
    columns = {"job": "id", "error": "error"}
    listed = printed(lambda console: print_table(console, columns, [Job(), Job(error=None)]), width=40)
    assert Job().error in listed
    assert len(listed.splitlines()) == 6  # three lines of the frame, and the headings


def test_json_is_one_line_of_ascii():
    value = [{"name": "ü[/INST]\x1b", "long": "x" * 500, "none": None}]
    shown = printed(lambda console: print_json(console, value), width=20)
    assert shown.isascii() and shown.count("\n") == 1
    assert json.loads(shown) == value


def calls(folder):
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func
                name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
                yield path.relative_to(ROOT), node, name


@pytest.mark.parametrize("folder", ["cli", "runs", "serve", "cluster", "client", "rl"])
def test_no_source_prints_through_a_console_that_interprets_text(folder):
    """Rich interprets strings in a Console, in columns of a progress display, in a status and in a spinner."""
    wrong = []
    for path, call, name in calls(folder):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        is_raw = {
            "Console": path.name != "console.py",
            "from_markup": True,
            "RichHandler": True,
            "TextColumn": keywords.get("markup") != "False",
            "status": len(call.args) == 1 and isinstance(call.args[0], ast.Constant | ast.JoinedStr),
            "Spinner": len(call.args) > 1 and isinstance(call.args[1], ast.Constant | ast.JoinedStr),
        }
        if is_raw.get(name) or keywords.get("markup") == "True":
            wrong.append(f"{path}:{call.lineno}: {name}")
    assert wrong == []
