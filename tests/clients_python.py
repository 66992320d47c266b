"""Programs of real clients that don't fit beside vLLM: they run in .venv-clients, which `make install` creates."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
from paths import ROOT

CLIENTS_PYTHON = ROOT / ".venv-clients/bin/python"
needs_clients = pytest.mark.skipif(
    not CLIENTS_PYTHON.exists(), reason="`make install` found no Python 3.12 or 3.13 for the clients in .venv-clients"
)


def run_client(program: Path, *arguments: str, env: Mapping[str, str] | None = None, timeout_s: float = 300) -> str:
    """Run a program in the clients' environment and return its standard output. Fail with all that it wrote."""
    ran = subprocess.run(
        [str(CLIENTS_PYTHON), str(program), *arguments],
        env={**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert ran.returncode == 0, f"{program.name} ended with {ran.returncode}:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout
