"""Commands whose output has characters that a terminal or a pipe can't take, or that nobody reads."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

PROGRAM = """
import sys
import typer
from rich.console import Console
from rich.table import Table
from tandem.cli.output import TolerantApp

app = TolerantApp()

@app.command()
def show(lines: int = 1):
    console = Console(highlight=False)
    table = Table("name")
    table.add_row("\\u00e9\\u00b1\\u20ac")
    console.print(table)
    for number in range(lines):
        console.print(f"line {number}: reward 1 \\u00b1 2 \\u00b7 a \\u2192 b \\udce9 \\x00")
        print("\\u2026 \\U0001f600", flush=True)
    print("complete", file=sys.stderr)

app()
"""


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return path


def run(program, *arguments, redirection="", **changes):
    command = f'exec "{sys.executable}" "{program}" {" ".join(arguments)} {redirection}'
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))}
    environment |= {"PYTHONPATH": str(ROOT)} | changes
    return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=300)


@pytest.mark.parametrize(
    "changes",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "POSIX"},
        {},
    ],
    ids=lambda changes: " ".join(changes.values()) or "default",
)
def test_any_text_is_printed_in_any_encoding(program, changes):
    ended = run(program, **changes)
    assert ended.returncode == 0 and ended.stderr == b"complete\n"
    assert b"line 0: reward 1" in ended.stdout and b"\\udce9" in ended.stdout


def test_known_characters_are_written_in_ascii(program):
    assert b"reward 1 +/- 2 - a -> b" in run(program, PYTHONIOENCODING="ascii").stdout


@pytest.mark.parametrize(
    "redirection",
    ["| true", "| head -1", ">&-", "</dev/null >&-", "<&- >&-"],
    ids=["no reader", "reader ends", "closed", "closed with input", "all closed"],
)
def test_a_command_without_a_reader_completes(program, redirection):
    command = f'set -o pipefail; "{sys.executable}" "{program}" --lines 5000 {redirection}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, timeout=300)
    assert (ended.returncode, ended.stderr) == (0, b"complete\n")


def test_closed_output_doesnt_get_into_files(tmp_path):
    """Without a standard output, the next file that a program opens would get its number."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os\nfrom tandem.cli.output import tolerate_any_output\ntolerate_any_output()\n"
        f"with open({str(tmp_path / 'file')!r}, 'w'):\n    print('hello', flush=True)\n    os.write(1, b'hello')\n"
    )
    assert run(program, redirection=">&-").returncode == 0
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_lost_on_a_full_disk_gives_a_status(program):
    ended = run(program, redirection=">/dev/full")
    assert ended.returncode == 1
    assert b"complete\n" in ended.stderr and b"No space left" in ended.stderr and b"Traceback" not in ended.stderr
